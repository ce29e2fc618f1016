/**
 * What the kernel reads around a page that a fault brings from disk. By itself it reads as much as the device's `read_ahead_kb` says, which
 * may be megabytes; a mapping with MADV_RANDOM brings one page (VM_RAND_READ, mm/filemap.c). What lies in the page cache already is mapped
 * around a fault in either case, up to 16 pages: that is decided elsewhere (do_fault_around, mm/memory.c).
 */
import { MADV_RANDOM, SYS } from "../linux/syscalls.js";
import { isStored } from "./compile-paged.js";
import { type Facts, isFile, type Region, storedPages } from "./facts.js";
import { forecast } from "./likelihood.js";
import { classifier } from "./prefetch.js";
import type { ProgramBuilder } from "./program.js";
import { spansOf } from "./spans.js";
import type { WorkingSet } from "./working-set.js";

/** One page alone takes as long as this many in order: 70 us, and 2 to 4 us each, on a virtual disk (docs/design/working-set.md). */
const PAGES_PER_MISS = 32;
/** What is known of sets, each of which is one image's: every start asks. */
const most = new WeakMap<WorkingSet, boolean>();

/** One page from disk for each fault that needs the disk, in all mappings of files that `which` names; they must be mapped by then. */
export function readNothingAround(program: ProgramBuilder, facts: Facts, which: (region: Region) => boolean): void {
  // What is not mapped between two mappings is skipped, and told as ENOMEM.
  for (const { start, end } of spansOf(facts.regions, which))
    program.call(`no read-ahead from 0x${start.toString(16)}`, SYS.madvise, [start, end - start, MADV_RANDOM], { mayFail: true });
}

/** Whether a region's pages come from a file: one of those, or the page space. */
export function isMapped(region: Region): boolean {
  return isFile(region) || isStored(region);
}

/**
 * Whether so much of the page space will be read beside the working set that large reads around each page bring it sooner than one read for
 * each. How much a function's own code touches that was only rehearsed nobody knows.
 */
export function readsScattered(facts: Facts, set: WorkingSet): boolean {
  return set.rehearsed === true || readsMost(facts, set);
}

/**
 * Whether it is known to be so: a function that touches thousands of other pages with each request. To read all of the page space in order takes less than
 * its misses one by one. What recordings disagree about in files of the interpreter says nothing about the page space.
 */
export function readsMost(facts: Facts, set: WorkingSet): boolean {
  if (set.rehearsed === true) return false;
  const known = most.get(set);
  if (known !== undefined) return known;
  const stored = facts.regions.reduce((sum, region) => sum + storedPages(region), 0);
  const classify = classifier(facts);
  const is = forecast(set, (runs) => classify(runs).image).misses * PAGES_PER_MISS > stored;
  most.set(set, is);
  return is;
}
