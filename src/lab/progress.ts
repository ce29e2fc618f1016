/** What is going on, on stderr: one line that is rewritten in a terminal; elsewhere only the beginning of each step. */
export class Progress {
  #step = "";
  #shownMs = 0;
  readonly #startedMs = performance.now();

  constructor(private readonly stream: { isTTY?: boolean; columns?: number; write(text: string): unknown }) {}

  /** Begins a step. */
  step(text: string): void {
    this.#step = text;
    this.#shownMs = 0;
    if (this.stream.isTTY === true) this.detail("");
    else this.stream.write(`${this.#clock()} ${text}\n`);
  }

  /** Says more about the step; at most ten times a second. */
  detail(text: string): void {
    if (this.stream.isTTY !== true || performance.now() - this.#shownMs < 100) return;
    this.#shownMs = performance.now();
    const line = `${this.#clock()} ${this.#step}${text === "" ? "" : `: ${text}`}`;
    this.stream.write(`\r\u001b[K${line.slice(0, (this.stream.columns ?? 80) - 1)}`);
  }

  /** Removes the line, so that other text can be written. */
  clear(): void {
    if (this.stream.isTTY === true) this.stream.write("\r\u001b[K");
  }

  #clock(): string {
    return `[${((performance.now() - this.#startedMs) / 1000).toFixed(0).padStart(3)} s]`;
  }
}
