/**
 * Bounds for everything the laboratory waits for. A measurement that hangs must become a reported failure, not a
 * terminal that never returns.
 */
import { errorText } from "../base/errors.js";

/** A point in time that several waits share. */
export class Deadline {
  readonly #atMs: number;

  constructor(readonly totalMs: number) {
    this.#atMs = performance.now() + totalMs;
  }

  /** Milliseconds left, never negative. */
  get remainingMs(): number {
    return Math.max(0, this.#atMs - performance.now());
  }

  get passed(): boolean {
    return this.remainingMs === 0;
  }
}

/** Raised by {@link within}. */
class TookTooLong extends Error {
  constructor(what: string, ms: number) {
    super(`${what} did not finish within ${Math.round(ms)} ms`);
    this.name = "TookTooLong";
  }
}

/** Settles as `promise` does, or rejects with {@link TookTooLong} after `ms`; the late outcome is then ignored. */
export async function within<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    // Timers know whole milliseconds, and are due up to one early: before a deadline that then had not passed.
    timer = setTimeout(() => reject(new TookTooLong(what, ms)), Math.ceil(ms) + 1);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

const CLEANUP_MS_MAX = 20_000;

/**
 * What has to be undone when the run ends, in whatever way: newest first, each once, each bounded in time.
 * A step that fails is reported and does not keep the others from running.
 */
export class Cleanup {
  readonly #steps: { name: string; undo: () => Promise<void> | void }[] = [];
  #running: Promise<string[]> | undefined;

  /** Adds a step; the returned function takes it back (because it was done already). */
  add(name: string, undo: () => Promise<void> | void): () => void {
    const step = { name, undo };
    this.#steps.push(step);
    return () => {
      const index = this.#steps.indexOf(step);
      if (index >= 0) this.#steps.splice(index, 1);
    };
  }

  /** Runs all steps; a second call waits for the first. Returns what went wrong. */
  run(): Promise<string[]> {
    this.#running ??= this.#runAll();
    return this.#running;
  }

  async #runAll(): Promise<string[]> {
    const problems: string[] = [];
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      const { name, undo } = step;
      await within(Promise.resolve().then(undo), CLEANUP_MS_MAX, name).catch((error: unknown) => {
        problems.push(`${name}: ${errorText(error)}`);
      });
    }
    return problems;
  }
}

const EXIT_BY_SIGNAL = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;

/** On Ctrl-C and its kin: cleans up, then exits with the conventional code. A second Ctrl-C exits at once. */
export function cleanUpOnSignals(cleanup: Cleanup, say: (text: string) => void): void {
  let signalled = false;
  for (const [signal, code] of Object.entries(EXIT_BY_SIGNAL)) {
    process.on(signal, () => {
      if (signalled) process.exit(code);
      signalled = true;
      say("stopping: cleaning up (again to leave at once)");
      void cleanup.run().then((problems) => {
        for (const problem of problems) say(`could not clean up: ${problem}`);
        process.exit(code);
      });
    });
  }
}
