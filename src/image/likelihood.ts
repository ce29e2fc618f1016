/**
 * How likely the next start touches what few recordings saw, or none: the estimate of Good and Turing (I. J. Good, "The population
 * frequencies of species and the estimation of population parameters", Biometrika 40, 1953). Of the pages that r of n recordings saw,
 * f(r) in number, the next start touches (r + 1) f(r + 1) / n; so f(1) / n are pages that nobody saw.
 */
import { type PageRun, runPages } from "./page-runs.js";
import type { CountedRun, WorkingSet } from "./working-set.js";

/**
 * A page is worth a read ahead of its fault from this probability on: its read occupies the disk for 16 us among many, and a fault
 * that has to read it alone waits for 70 us (docs/design/working-set.md#what-is-read-ahead).
 */
const WORTH_READING = 0.2;

/** Of the pages that the next start touches, those that the parts of a set bring. */
export interface Forecast {
  /** Pages that at most half of the recordings touched, and that are worth reading ahead all the same. */
  readonly likely: readonly CountedRun[];
  /** Number of pages that the next start will touch and that are not read ahead. */
  readonly misses: number;
}

/** See above. @param count how many pages of runs count as misses; all of them by default */
export function forecast({ recordings, runs }: WorkingSet, count: (runs: readonly PageRun[]) => number = runPages): Forecast {
  if (recordings === 0) return { likely: [], misses: 0 };
  const seenBy = ({ written, read }: CountedRun): number => written + read;
  const classes = Array.from({ length: recordings + 2 }, (_, seen) => runs.filter((run) => seenBy(run) === seen));
  const touchedNext = (seen: number, pages = runPages): number => ((seen + 1) * pages(classes[seen + 1] ?? [])) / recordings;
  const worthReading = (seen: number): boolean => touchedNext(seen) >= runPages(classes[seen] ?? []) * WORTH_READING;
  let misses = touchedNext(0, count);
  for (let seen = 1; seen * 2 <= recordings; seen++) if (!worthReading(seen)) misses += touchedNext(seen, count);
  return { likely: runs.filter((run) => seenBy(run) * 2 <= recordings && worthReading(seenBy(run))), misses };
}
