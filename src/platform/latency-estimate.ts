/**
 * A robust estimate of a latency from its last few samples: the interquartile mean and its uncertainty. Hiccups of the machine must not condemn
 * an image (a quarter of the starts may have one), a slow mode that is hit by two starts of five must count (a median would not see it), and
 * what was true an hour ago must fade.
 *
 *     samples, sorted:   [ · · | · · · · | · · ]     the lowest and the highest quarter are left out,
 *                          out    mean     out       at least one of each as soon as there are three
 *
 * The uncertainty is Tukey and McLaughlin's for trimmed means (1963), from the Winsorized variance; of few samples it is the plain one, so that a
 * hiccup among them makes nobody certain.
 */

/** Samples that are remembered. */
export const WINDOW = 24;
const TRIMMED = 4;
/** Below this there are too few samples to tell a hiccup from noise. */
const FEW = 8;
/** A latency is not believed beyond this, eleven days: sums must stay finite. */
const MS_MAX = 1e9;
/** Samples that agree by chance are not more certain than this part of their mean each. */
const NOISE_MIN = 0.05;

/** See above. A sample costs a store; the arithmetic, on at most {@link WINDOW} numbers, is done when somebody asks. */
export class LatencyEstimate {
  /** Samples seen in all. */
  count = 0;
  private readonly window: number[] = [];
  private known: { readonly mean: number; readonly error: number } | undefined;

  /** What is no latency (negative, NaN) is passed over. */
  add(ms: number): void {
    if (!(ms >= 0)) return;
    this.window[this.count++ % WINDOW] = Math.min(ms, MS_MAX);
    this.known = undefined;
  }

  /** Milliseconds; NaN without samples. */
  get mean(): number {
    return this.settled.mean;
  }

  /** Standard error of {@link mean}; infinite below three samples. */
  get error(): number {
    return this.settled.error;
  }

  private get settled(): { readonly mean: number; readonly error: number } {
    this.known ??= trimmed(this.window);
    return this.known;
  }
}

function trimmed(samples: readonly number[]): { readonly mean: number; readonly error: number } {
  const sorted = Float64Array.from(samples).sort();
  const size = sorted.length;
  const out = size < 3 ? 0 : Math.max(1, Math.floor(size / TRIMMED));
  const kept = sorted.subarray(out, size - out);
  const mean = kept.reduce((sum, sample) => sum + sample, 0) / kept.length;
  if (size < 3) return { mean, error: Number.POSITIVE_INFINITY };
  const few = size < FEW;
  const low = few ? 0 : (kept[0] ?? 0);
  const high = few ? MS_MAX : (kept.at(-1) ?? 0);
  const pulled = sorted.map((sample) => Math.min(high, Math.max(low, sample)));
  const middle = pulled.reduce((sum, sample) => sum + sample, 0) / size;
  const spread = Math.sqrt(pulled.reduce((sum, sample) => sum + (sample - middle) ** 2, 0) / (size - 1));
  const error = few ? spread / Math.sqrt(size) : (spread * Math.sqrt(size)) / kept.length;
  return { mean, error: Math.max(error, (mean * NOISE_MIN) / Math.sqrt(size)) };
}
