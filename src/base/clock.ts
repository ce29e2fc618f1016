/**
 * Time. Durations come from the monotonic clock, in microseconds or milliseconds with fractions; points in
 * time that leave the process are epoch milliseconds. A start is timed by a {@link Stopwatch}, whose phases
 * are what logs, metrics and benchmarks show.
 */

/** Monotonic time in microseconds, with fractions. Its origin means nothing; only differences do. */
export function nowUs(): number {
  return performance.now() * 1000;
}

/** Monotonic time in milliseconds, with fractions. */
export function nowMs(): number {
  return performance.now();
}

/** Wall clock, epoch milliseconds. */
export function epochMs(): number {
  return Date.now();
}

/** One phase: its name, and how many microseconds it took. */
export interface TimedPhase {
  readonly name: string;
  readonly us: number;
}

/** Splits a span of time into named, consecutive phases: their sum is the time from creation to the last mark. */
export class Stopwatch {
  readonly #clock: () => number;
  readonly #startUs: number;
  #lastUs: number;
  readonly #phases: TimedPhase[] = [];

  /** `clock` gives monotonic microseconds; tests pass their own. */
  constructor(clock: () => number = nowUs) {
    this.#clock = clock;
    this.#startUs = clock();
    this.#lastUs = this.#startUs;
  }

  /** Ends the current phase under `name` and begins the next. Returns its length in microseconds. */
  mark(name: string): number {
    const now = this.#clock();
    const us = now - this.#lastUs;
    this.#phases.push({ name, us });
    this.#lastUs = now;
    return us;
  }

  /** Microseconds since creation. */
  get elapsedUs(): number {
    return this.#clock() - this.#startUs;
  }

  /** The phases marked so far, in order. */
  get phases(): readonly TimedPhase[] {
    return this.#phases;
  }
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
