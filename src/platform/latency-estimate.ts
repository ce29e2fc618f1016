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
import { MS_MAX, SampleWindow } from "./sample-window.js";

const TRIMMED = 4;
/** Below this there are too few samples to tell a hiccup from noise. */
const FEW = 8;
/** Samples that agree by chance are not more certain than this part of their mean each. */
const NOISE_MIN = 0.05;

/** What the samples say. */
interface Summary {
  readonly mean: number;
  readonly error: number;
}

const NOTHING: Summary = { mean: Number.NaN, error: Number.POSITIVE_INFINITY };

/** See above. The arithmetic, on a few dozen numbers, is done when somebody asks. */
export class LatencyEstimate {
  private readonly samples = new SampleWindow();
  private known: Summary | undefined = NOTHING;

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
    if (this.samples.add(ms)) this.known = undefined;
  }

  /** Milliseconds; NaN without samples. */
  get mean(): number {
    return this.summary.mean;
  }

  /** Standard error of {@link mean}; infinite below three samples. */
  get error(): number {
    return this.summary.error;
  }

  private get summary(): Summary {
    this.known ??= summarize(this.samples.sorted);
    return this.known;
  }
}

function summarize(sorted: readonly number[]): Summary {
  const size = sorted.length;
  const out = size < 3 ? 0 : Math.max(1, Math.floor(size / TRIMMED));
  const kept = size - 2 * out;
  let sum = 0;
  for (let index = out; index < size - out; index++) sum += sorted[index] ?? 0;
  const mean = sum / kept;
  const low = sorted[out] ?? Number.NaN;
  if (size < 3) return { mean, error: Number.POSITIVE_INFINITY };
  // Few samples are not pulled in: a hiccup among them makes nobody certain.
  const few = size < FEW;
  const bottom = few ? 0 : low;
  const top = few ? MS_MAX : (sorted[size - 1 - out] ?? 0);
  let total = 0;
  let squares = 0;
  for (const sample of sorted) total += Math.min(top, Math.max(bottom, sample));
  for (const sample of sorted) squares += (Math.min(top, Math.max(bottom, sample)) - total / size) ** 2;
  const spread = Math.sqrt(squares / (size - 1));
  const error = few ? spread / Math.sqrt(size) : (spread * Math.sqrt(size)) / kept;
  return { mean, error: Math.max(error, (mean * NOISE_MIN) / Math.sqrt(size)) };
}
