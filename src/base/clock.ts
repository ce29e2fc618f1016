/**
 * Time. Durations come from the monotonic clock, in microseconds or milliseconds with fractions; points in
 * time that leave the process are epoch milliseconds.
 */

/** What setTimeout can wait for; beyond, it waits for nothing. */
export const TIMER_MS_MAX = 2 ** 31 - 1;

/** Monotonic time in microseconds, with fractions. Its origin means nothing; only differences do. */
export function nowUs(): number {
  return performance.now() * 1000;
}

/** Monotonic time in milliseconds, with fractions. */
export function nowMs(): number {
  return performance.now();
}

/** Resolves after `ms` milliseconds; rejects with the signal's reason when aborted. The timer keeps the process alive. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) return reject(signal.reason);
    const onAbort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}

/** CLOCK_MONOTONIC in nanoseconds: comparable with the stamps that the husk and the keeper take. */
export function monotonicNs(): bigint {
  return process.hrtime.bigint();
}
