/** Counts of values by size, as Prometheus has them: each bound counts what is at most as large. */

/** What a {@link Histogram} holds. */
export interface HistogramView {
  /** How many values were at most as large as each bound, and larger than the one before; the last one: larger than all. */
  readonly buckets: readonly number[];
  readonly count: number;
  readonly sum: number;
}

export class Histogram {
  readonly #buckets: number[];
  #sum = 0;

  /** `bounds`: ascending, in the unit of the values. */
  constructor(private readonly bounds: readonly number[]) {
    this.#buckets = new Array<number>(bounds.length + 1).fill(0);
  }

  add(value: number): void {
    let index = 0;
    while (index < this.bounds.length && value > (this.bounds[index] ?? 0)) index++;
    this.#buckets[index] = (this.#buckets[index] ?? 0) + 1;
    this.#sum += value;
  }

  view(): HistogramView {
    return { buckets: [...this.#buckets], count: this.#buckets.reduce((sum, each) => sum + each, 0), sum: this.#sum };
  }
}
