/** The last few samples of a latency, in order of time and of size. What was true an hour ago must fade. */

/** Samples that are remembered. */
const WINDOW = 48;
/** A latency is not believed beyond this, eleven days: sums must stay finite. */
export const MS_MAX = 1e9;

/** See above. */
export class SampleWindow {
  /** Samples seen in all. */
  count = 0;
  private readonly ring: number[] = [];
  private readonly rising: number[] = [];

  /** Milliseconds, the lowest first. */
  get sorted(): readonly number[] {
    return this.rising;
  }

  /** The last `most` of them, the oldest first, with four digits: added one by one to a new window, they bring back what it knew. */
  recent(most: number): number[] {
    const size = this.ring.length;
    const first = size < WINDOW ? 0 : this.count % WINDOW;
    const inOrder = [...this.ring.slice(first), ...this.ring.slice(0, first)];
    return inOrder.slice(-most).map((ms) => Number(ms.toPrecision(4)));
  }

  /** What is no latency (negative, NaN) is passed over: false. */
  add(ms: number): boolean {
    if (!(ms >= 0)) return false;
    const sample = Math.min(ms, MS_MAX);
    const at = this.count++ % WINDOW;
    const forgotten = this.ring[at];
    if (forgotten !== undefined) this.rising.splice(place(this.rising, forgotten), 1);
    this.ring[at] = sample;
    this.rising.splice(place(this.rising, sample), 0, sample);
    return true;
  }
}

/** Where in rising order a number stands, or would. */
function place(sorted: readonly number[], sample: number): number {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((sorted[middle] ?? 0) < sample) low = middle + 1;
    else high = middle;
  }
  return low;
}
