/**
 * How many faults of a start lie outside its working set; REAP (§5) suggests to compare, and to record anew when it is too many.
 * Two bounds from below:
 *
 * The **number of faults**, which costs nothing to know. Pages that are written cost one fault each, pages that are read one for each
 * 64 KiB (the kernel's fault-around maps the cached neighbours too), or one each while they come from disk. The rest (the
 * husk's own pages, pages read before they are written) was counted when the set was recorded. What goes beyond lies outside.
 * A start that leaves half of the set alone and touches as much elsewhere is not seen so.
 *
 * The **present pages**, which cost a scan. What is present and not explained by the set was touched outside of it.
 */
import { type PageRun, pageAt, runPages } from "./page-runs.js";
import type { WorkingSet } from "./working-set.js";

/** fault_around_bytes, as every kernel has it unless debugfs says otherwise. */
const FAULT_AROUND_PAGES = 16;
const HUGE_PAGES = 512;

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
    readCached: set.exact ? new Set(blocksOf(set.read, FAULT_AROUND_PAGES)).size : 0,
    readEach: runPages(set.read),
  };
}

/** @param ahead the set was mapped before the faults were counted. @param cold the start waited for the disk at least once */
export function expectedFaults(model: FaultModel, ahead: boolean, cold: boolean): number {
  if (ahead) return model.overhead;
  return model.overhead + model.written + (cold ? model.readEach : model.readCached);
}

/** Every aligned block of so many pages that a run has pages in. */
function* blocksOf(runs: readonly PageRun[], blockPages: number): Generator<number> {
  for (const { address, pages } of runs) {
    const first = pageAt(address);
    for (let block = Math.floor(first / blockPages); block * blockPages < first + pages; block++) yield block;
  }
}

/** Present pages of an instance, by what brought them. */
export interface PresentRuns {
  /** Private copies. */
  readonly written: readonly PageRun[];
  /** Shared with a file, or zero pages. */
  readonly read: readonly PageRun[];
  /** Those of both that one fault mapped, 2 MiB at a time. */
  readonly huge: readonly PageRun[];
}

/** Tells which present pages a set does not explain. Built once for a set. */
export class SetMap {
  readonly #pages: ReadonlySet<number>;
  readonly #blocks: ReadonlySet<number>;
  readonly #hugeBlocks: ReadonlySet<number>;

  constructor(set: WorkingSet) {
    this.#pages = new Set(blocksOf(set.runs, 1));
    this.#blocks = new Set(blocksOf(set.runs, FAULT_AROUND_PAGES));
    this.#hugeBlocks = new Set(blocksOf(set.runs, HUGE_PAGES));
  }

  /**
   * Faults that at least lie outside the set: one for each written page that is not in it, one for each 64 KiB (or 2 MiB that came
   * in one piece) of other pages without a page of it.
   */
  outside(present: PresentRuns): number {
    const huge = new Set(blocksOf(present.huge, HUGE_PAGES));
    let faults = 0;
    for (const block of huge) if (!this.#hugeBlocks.has(block)) faults++;
    for (const page of blocksOf(present.written, 1))
      if (!this.#pages.has(page) && !huge.has(Math.floor(page / HUGE_PAGES))) faults++;
    const seen = new Set<number>();
    for (const block of blocksOf(present.read, FAULT_AROUND_PAGES)) {
      if (seen.has(block) || huge.has(Math.floor((block * FAULT_AROUND_PAGES) / HUGE_PAGES))) continue;
      seen.add(block);
      // Fault-around begins no earlier than its mapping, and then reaches into the next block.
      if (!this.#blocks.has(block) && !this.#blocks.has(block - 1)) faults++;
    }
    return faults;
  }
}
