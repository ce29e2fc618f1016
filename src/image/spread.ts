/**
 * Pages that a function will write and no recording can name, because its input chooses them: reference counts of the objects that a Python
 * handler looks up in a large heap, entries of a table. The mappings in which it does so are known all the same. A husk that is parked prefaulted has its own copy of
 * them, as a booted instance would: who parks such husks pays memory for the time of a start.
 */
import { PROT_WRITE } from "../linux/syscalls.js";
import { type Region, storedRuns } from "./facts.js";
import { type PageRun, runPages, SortedRuns } from "./page-runs.js";
import { RECORDINGS_MIN, type WorkingSet } from "./working-set.js";

/** A copy that is made ahead takes 1.7 us off a start: so many are worth a start that is prefaulted. */
const WRITES_MIN = 64;
/** Of a mapping's pages, how many a start must write for it to be copied whole. A heap is several mappings, which the input chooses from alike. */
const PART_MIN = 0.01;
/** Of all such mappings together: 64 MiB. */
const PAGES_MAX = 16_384;

/**
 * The stored pages of all mappings of which the next start will write a hundredth or more that most recordings did not, those with the most of them for their size first, as far
 * as they have room; none where that is less than 64 pages in all.
 */
export function writtenAnywhere(regions: readonly Region[], set: WorkingSet): PageRun[] {
  if (set.recordings < RECORDINGS_MIN) return [];
  const seldom = byCount(set.runs.filter(({ written }) => written > 0 && written * 2 <= set.recordings));
  const chosen = regions
    .filter(
      ({ kind, prot, wipe }) =>
        (kind === "anon" || kind === "heap" || kind === "base") && (prot & PROT_WRITE) !== 0 && wipe !== 1,
    )
    .map((region) => {
      const pages = storedRuns(region);
      return { pages, size: runPages(pages), writes: writesIn(region, seldom) / set.recordings };
    })
    .filter(({ writes, size }) => writes > 0 && writes >= size * PART_MIN)
    .sort((a, b) => b.writes / b.size - a.writes / a.size);
  if (chosen.reduce((sum, { writes }) => sum + writes, 0) < WRITES_MIN) return [];
  let room = PAGES_MAX;
  return chosen.flatMap(({ pages, size }) => {
    if (size > room) return [];
    room -= size;
    return pages;
  });
}

/** What the same number of recordings saw written. */
interface Written {
  readonly times: number;
  readonly runs: SortedRuns;
}

function byCount(runs: WorkingSet["runs"]): Written[] {
  const counts = new Set(runs.map(({ written }) => written));
  return [...counts].map((times) => ({ times, runs: new SortedRuns(runs.filter(({ written }) => written === times)) }));
}

/** By all recordings together. */
function writesIn({ start, end }: Region, written: readonly Written[]): number {
  return written.reduce((sum, { times, runs }) => sum + runPages(runs.within(start, end)) * times, 0);
}
