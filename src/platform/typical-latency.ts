/**
 * What is typical of a latency, from its last few samples: their median, less the doubt about it. A start that meets noise is
 * slow in all its requests: of three samples one is often slow, so the middle one says little and the lowest much. Of many, it is nearly the median.
 *
 *     samples, sorted:   [ ▲ · · ]     [ · · ▲ · · · · · ]     n/2 - √n / 2 from below: the median, less its standard error
 */
import { SampleWindow } from "./sample-window.js";

/** See above. */
export class TypicalLatency {
  /** Milliseconds; NaN without samples. */
  ms = Number.NaN;
  private readonly samples = new SampleWindow();

  /** Samples seen in all. */
  get count(): number {
    return this.samples.count;
  }

  /** See {@link SampleWindow.recent}. */
  recent(most: number): number[] {
    return this.samples.recent(most);
  }

  /** What is no latency (negative, NaN) is passed over. */
  add(ms: number): void {
    if (!this.samples.add(ms)) return;
    const { sorted } = this.samples;
    this.ms = sorted[Math.max(0, Math.floor((sorted.length - Math.sqrt(sorted.length)) / 2))] ?? Number.NaN;
  }
}
