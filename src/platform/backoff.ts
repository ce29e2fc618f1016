/** Pauses that double with each failure in a row, up to a limit; a success ends them. */
export class Backoff {
  failures = 0;
  #untilMs = 0;

  constructor(
    private readonly firstMs: number,
    private readonly maxMs: number,
  ) {}

  /** Milliseconds that are left of the pause. */
  get leftMs(): number {
    return Math.max(0, this.#untilMs - performance.now());
  }

  fail(): void {
    this.#untilMs = performance.now() + Math.min(this.maxMs, this.firstMs * 2 ** this.failures);
    this.failures += 1;
  }

  succeed(): void {
    this.failures = 0;
    this.#untilMs = 0;
  }
}
