/**
 * How many faults a start may take while it touches nothing but its working set. What goes beyond lies outside the set; REAP
 * (§5) suggests this comparison, and to record anew when it shows too many.
 *
 * Pages that are written cost one fault each, pages that are read one for each 64 KiB (the kernel's fault-around maps the cached
 * neighbours too), or one each while they come from disk. The rest (the husk's own pages, pages read before they are written)
 * was counted when the set was recorded. It is a bound from above: a start whose count stays below it may still have touched
 * a few other pages in exchange for some of the set.
 */
import { type PageRun, runPages, type WorkingSet } from "./working-set.js";

/** fault_around_bytes, as every kernel has it unless debugfs says otherwise. */
const FAULT_AROUND_PAGES = 16;

/** What a set accounts for; numbers of faults. */
export interface FaultModel {
  readonly overhead: number;
  readonly written: number;
  /** Reads, when all pages are cached. */
  readonly readCached: number;
  /** Reads, when each page is waited for. */
  readonly readEach: number;
}

/** Computed once for a set. */
export function faultModel(set: WorkingSet): FaultModel {
  const written = set.runs.filter((run) => run.written > 0);
  return {
    overhead: set.overhead,
    written: runPages(written),
    // A set that was not exact has counted its reads, with the neighbours mapped, in the overhead.
    readCached: set.exact ? blocks(set.read) : 0,
    readEach: runPages(set.read),
  };
}

/** @param ahead the set was mapped before the faults were counted. @param cold the start waited for the disk at least once */
export function expectedFaults(model: FaultModel, ahead: boolean, cold: boolean): number {
  if (ahead) return model.overhead;
  return model.overhead + model.written + (cold ? model.readEach : model.readCached);
}

function blocks(runs: readonly PageRun[]): number {
  const seen = new Set<number>();
  for (const { address, pages } of runs) {
    const first = Number(address / 4096n);
    for (let block = Math.floor(first / FAULT_AROUND_PAGES); block * FAULT_AROUND_PAGES < first + pages; block++) seen.add(block);
  }
  return seen.size;
}
