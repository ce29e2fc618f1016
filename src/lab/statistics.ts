/**
 * Order statistics and their uncertainty. Medians, because a start's time has a long tail; bootstrap intervals,
 * because a ratio of two medians has no simple error formula (Efron, "Bootstrap methods", 1979).
 */

/** What the tables show of a list of samples; all in the samples' own unit. */
export interface Summary {
  readonly median: number;
  readonly p99: number;
  /** Third quartile minus first. */
  readonly iqr: number;
}

/** An estimate with its 95 % interval. */
export interface Estimate {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

/**
 * The `q`-quantile (0..1), linear between neighbours (type 7 of Hyndman and Fan, 1996).
 * NaN for an empty list, so that a missing measurement can never look like a fast one.
 */
export function quantile(samples: readonly number[], q: number): number {
  return quantileOfSorted(Float64Array.from(samples).sort(), q);
}

function quantileOfSorted(sorted: ArrayLike<number>, q: number): number {
  const at = (sorted.length - 1) * q;
  const below = sorted[Math.floor(at)];
  const above = sorted[Math.ceil(at)];
  if (below === undefined || above === undefined) return Number.NaN;
  // Not `a * (1 - t) + b * t`: rounding there can leave the interval between the two neighbours.
  return Math.min(above, below + (above - below) * (at - Math.floor(at)));
}

/** The middle of the samples. */
export function median(samples: readonly number[]): number {
  return quantile(samples, 0.5);
}

/** Median, p99, interquartile range. */
export function summarize(samples: readonly number[]): Summary {
  const sorted = Float64Array.from(samples).sort();
  return {
    median: quantileOfSorted(sorted, 0.5),
    p99: quantileOfSorted(sorted, 0.99),
    iqr: quantileOfSorted(sorted, 0.75) - quantileOfSorted(sorted, 0.25),
  };
}

/** `median(numerator) / median(denominator)` with a bootstrap interval. */
export function ratioOfMedians(numerator: readonly number[], denominator: readonly number[]): Estimate {
  return bootstrap(numerator, denominator, (a, b) => a / b);
}

/** `median(a) - median(b)` with a bootstrap interval. */
export function differenceOfMedians(a: readonly number[], b: readonly number[]): Estimate {
  return bootstrap(a, b, (left, right) => left - right);
}

/** One numerator and denominator of {@link geometricMeanOfRatios}. */
export interface SamplePair {
  readonly numerator: readonly number[];
  readonly denominator: readonly number[];
}

/**
 * Geometric mean of `median(numerator) / median(denominator)` over all pairs: what ratios of different functions are summed up with (Fleming
 * and Wallace, 1986). The interval resamples every list. NaN when there is no pair or any list is empty.
 */
export function geometricMeanOfRatios(pairs: readonly SamplePair[]): Estimate {
  const mean = (middle: (samples: readonly number[]) => number) =>
    Math.exp(
      pairs.reduce((sum, { numerator, denominator }) => sum + Math.log(middle(numerator) / middle(denominator)), 0) /
        pairs.length,
    );
  const value = mean(median);
  if (Number.isNaN(value)) return { value, low: value, high: value };
  const random = seededRandom(pairs.length);
  const estimates = Float64Array.from({ length: RESAMPLES }, () => mean((samples) => resampledMedian(samples, random))).sort();
  return { value, low: quantileOfSorted(estimates, 0.025), high: quantileOfSorted(estimates, 0.975) };
}

/**
 * How large a ratio between two equal ways was: the end of the A/A pair's 95 % interval that is farther from 1, as a ratio of at least 1. A
 * difference within it means nothing.
 */
export function noiseOf(first: readonly number[], again: readonly number[]): number {
  const { low, high } = ratioOfMedians(first, again);
  return Math.max(high, 1 / low);
}

/** A ratio in whichever direction is above 1: between equals, either is noise. */
export function awayFromOne({ value, low, high }: Estimate): Estimate {
  return value >= 1 ? { value, low, high } : { value: 1 / value, low: 1 / high, high: 1 / low };
}

const RESAMPLES = 2_000;

/**
 * Both lists are resampled independently, which is the wider interval: rounds are interleaved, so what noise they
 * share would only make a paired interval narrower. Seeded: the same samples give the same interval.
 */
function bootstrap(left: readonly number[], right: readonly number[], combine: (a: number, b: number) => number): Estimate {
  const value = combine(median(left), median(right));
  if (left.length === 0 || right.length === 0) return { value, low: Number.NaN, high: Number.NaN };
  const random = seededRandom(left.length * 1_000_003 + right.length);
  const estimates = new Float64Array(RESAMPLES);
  for (let index = 0; index < RESAMPLES; index++) {
    estimates[index] = combine(resampledMedian(left, random), resampledMedian(right, random));
  }
  estimates.sort();
  return { value, low: quantileOfSorted(estimates, 0.025), high: quantileOfSorted(estimates, 0.975) };
}

function resampledMedian(samples: readonly number[], random: () => number): number {
  const drawn = new Float64Array(samples.length);
  for (let index = 0; index < drawn.length; index++) drawn[index] = samples[Math.floor(random() * samples.length)] ?? 0;
  return quantileOfSorted(drawn.sort(), 0.5);
}

/** A small generator (mulberry32) whose sequence depends on the seed alone; 0 <= x < 1. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
