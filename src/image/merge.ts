/**
 * Merging recordings into a working set, until it is stable. Spice traces until the set is stable, at most 20 times; here every
 * recording is a real start that takes a fault for each page, so there are at most {@link RECORDINGS_MAX}, and they end as
 * soon as one brings next to nothing new (docs/design/working-set.md has the figures).
 */
import { addressOf, type PageRun, pageAt, runPages } from "./page-runs.js";
import { type CountedRun, RECORDINGS_MIN, type WorkingSet, workingSet } from "./working-set.js";

/** REAP finds 97 % or more of the pages the same across inputs for most functions: five recordings see what there is to see. */
export const RECORDINGS_MAX = 5;
/** A recording that adds a smaller part of the set than this, and moves no more between the parts, is the last. */
const STABLE_PART = 0.02;

/** What one invocation touched. A page is in one list only. */
export interface Recording {
  /** Pages that became private copies. */
  readonly written: readonly PageRun[];
  /** Pages that stayed shared with the page space or a file, and zero pages. */
  readonly read: readonly PageRun[];
  /** Page faults from the beginning of the start to the answer. */
  readonly faults: number;
  readonly exact: boolean;
  /** The faults of making the process were taken before they were counted. */
  readonly parked?: boolean;
  /** Without the function's own code. */
  readonly rehearsed?: boolean;
  /** Tells its event from others; undefined where the function did not see it. */
  readonly event?: number | undefined;
}

/** Page faults of a husk up to the resume, beside those of the image: stacks, programs, page tables of its own. Measured: 190 to 220. */
const HUSK_FAULTS = 200;

/** The set with one more recording. Runs come out in order of address. */
export function addRecording(set: WorkingSet, recording: Recording): WorkingSet {
  const recordings = set.recordings + 1;
  const once = (runs: readonly PageRun[], written: number): CountedRun[] =>
    runs.map(({ address, pages }) => ({ address, pages, written, read: 1 - written }));
  const merged = workingSet({
    recordings,
    stable: false,
    // One that was not exact leaves its pages in the set.
    exact: recording.exact && set.exact,
    order: "address",
    faults: recording.faults,
    overhead: overheadOf(recording),
    runs: sumRuns([...set.runs, ...once(recording.written, 1), ...once(recording.read, 0)]),
    ...(set.rehearsed === true || recording.rehearsed === true ? { rehearsed: true } : {}),
    event: set.recordings === 0 || set.event === recording.event ? recording.event : undefined,
  });
  if (recordings < RECORDINGS_MIN) return merged;
  const all = runPages(merged.runs);
  const added = all - runPages(set.runs);
  // Between the first and the second recording nothing was copied yet: there is nothing to compare.
  const moved = recordings === RECORDINGS_MIN ? 0 : Math.abs(runPages(merged.written) - runPages(set.written));
  return { ...merged, stable: recordings >= RECORDINGS_MAX || added + moved < all * STABLE_PART };
}

function overheadOf({ written, read, faults, exact, parked }: Recording): number {
  const rest = faults - runPages(written) - (exact ? runPages(read) : 0);
  return Math.max(0, rest) + (parked === true ? HUSK_FAULTS : 0);
}

/** Adds up counts where runs overlap; neighbours with equal counts become one. */
function sumRuns(runs: readonly CountedRun[]): CountedRun[] {
  const edges = runs.flatMap(({ address, pages, written, read }) => {
    const page = pageAt(address);
    return [
      { page, written, read },
      { page: page + pages, written: -written, read: -read },
    ];
  });
  edges.sort((a, b) => a.page - b.page);
  const sums: { page: number; pages: number; written: number; read: number }[] = [];
  let from = 0;
  let written = 0;
  let read = 0;
  for (const edge of edges) {
    if (edge.page > from && written + read > 0) {
      const last = sums.at(-1);
      if (last !== undefined && last.page + last.pages === from && last.written === written && last.read === read)
        last.pages += edge.page - from;
      else sums.push({ page: from, pages: edge.page - from, written, read });
    }
    from = edge.page;
    written += edge.written;
    read += edge.read;
  }
  return sums.map(({ page, pages, ...counts }) => ({ address: addressOf(page), pages, ...counts }));
}
