/**
 * What is typical of a latency, from its last few samples: their median, less the doubt about it. A start that meets noise is
 * slow in all its requests: of three samples one is often slow, so the middle one says little and the lowest much. Of many, it is nearly the median.
 *
 *     samples, sorted:   [ ▲ · · ]     [ · · ▲ · · · · · ]     n/2 - Z √n / 2 from below: the lower bound of what the median may be
 */

/** Samples that are remembered: what was true an hour ago must fade. */
const WINDOW = 48;
const Z = 1.3;
/** A latency is not believed beyond this, eleven days: sums must stay finite. */
const MS_MAX = 1e9;

/** See above. Adding a sample keeps them sorted. */
export class TypicalLatency {
  /** Samples seen in all. */
  count = 0;
  /** Milliseconds; NaN without samples. */
  ms = Number.NaN;
  private readonly ring: number[] = [];
  private readonly sorted: number[] = [];

  /** What is no latency (negative, NaN) is passed over. */
  add(ms: number): void {
    if (!(ms >= 0)) return;
    const sample = Math.min(ms, MS_MAX);
    const at = this.count++ % WINDOW;
    const forgotten = this.ring[at];
    if (forgotten !== undefined) this.sorted.splice(this.sorted.indexOf(forgotten), 1);
    this.ring[at] = sample;
    const place = this.sorted.findIndex((other) => other >= sample);
    this.sorted.splice(place < 0 ? this.sorted.length : place, 0, sample);
    const { length } = this.sorted;
    this.ms = this.sorted[Math.max(0, Math.floor((length - Z * Math.sqrt(length)) / 2))] ?? Number.NaN;
  }
}
