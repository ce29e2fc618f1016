/**
 * The working set: the pages that invocations touch between the thaw and the answer, split into those they write and those they
 * only read (REAP §5, Spice). It is merged from a few recordings (merge.ts) and stored beside the image; losing it costs speed,
 * never correctness.
 *
 * File: `thaw-working-set 2 <sha256 of what follows> <bytes of what follows>`, then compressed JSON. Its `runs` hold four numbers
 * for each run of pages: distance in pages from the end of the run before, pages, recordings that saw it written, recordings
 * that saw it only read.
 */
import { z } from "../base/schema.js";
import { addressOf, endOf, type PageRun, pageAt, runBetween } from "./page-runs.js";
import { decodeSealed, encodeSealed } from "./sealed.js";

/** Pages that the same number of recordings saw written, and the same number saw only read. */
export interface CountedRun extends PageRun {
  readonly written: number;
  readonly read: number;
}

/** How the runs of a set are sorted; a scan sees addresses, a pager sees accesses. */
export type RunOrder = "address" | "access";

/** What a working-set file holds. */
export interface WorkingSetFacts {
  /** Recordings that were merged. */
  readonly recordings: number;
  /** The last recording brought next to nothing new: no more are made until it goes stale. */
  readonly stable: boolean;
  /** No page is in it that nobody touched. False where the kernel could not switch its fault-around off (working-set.md). */
  readonly exact: boolean;
  /** Order of the runs. */
  readonly order: RunOrder;
  /** Page faults of the last recorded start and request, all by demand. */
  readonly faults: number;
  /** Those of them that brought no page of the set: the husk's own, second faults of pages that were read and then written. */
  readonly overhead: number;
  readonly runs: readonly CountedRun[];
  /** What starts read of the page space lies together on the disk (engine/packing.ts): gaps between its parts are elsewhere. */
  readonly packed?: boolean | undefined;
  /** The function's own code did not run in one of the recordings or more (engine/rehearsal.ts): what that touches is unknown. */
  readonly rehearsed?: boolean | undefined;
  /** Digest of the event of all recordings, when that was one and the same: what others do not need was written each time, too. */
  readonly event?: number | undefined;
}

/** As stored, and what is made of it. */
export interface WorkingSet extends WorkingSetFacts {
  /** Pages worth copying ahead: written in more than half of at least two recordings. In the order of the set. */
  readonly written: readonly PageRun[];
  /** All others that were touched, zero pages too. */
  readonly read: readonly PageRun[];
  /** Those of them that more than half of the recordings touched; the others depend on the input. */
  readonly readOften: readonly PageRun[];
}

/** One recording is not enough to copy by: with other input a function writes other pages (docs/design/working-set.md). */
export const RECORDINGS_MIN = 2;

/** Adds what follows from the counts. */
export function workingSet(facts: WorkingSetFacts): WorkingSet {
  const { recordings, runs } = facts;
  const copied = (run: CountedRun): boolean => recordings >= RECORDINGS_MIN && run.written * 2 > recordings;
  const often = (run: CountedRun): boolean => (run.written + run.read) * 2 > recordings;
  const plain = (some: readonly CountedRun[]): PageRun[] => touching(some.map(({ address, pages }) => ({ address, pages })));
  const rest = runs.filter((run) => !copied(run));
  return {
    ...facts,
    written: plain(runs.filter(copied)),
    read: plain(rest),
    readOften: plain(rest.filter(often)),
  };
}

/** Joins runs that follow one another without a gap, and keeps the order. */
function touching(runs: readonly PageRun[]): PageRun[] {
  const joined: PageRun[] = [];
  for (const run of runs) {
    const last = joined.at(-1);
    if (last !== undefined && endOf(last) === run.address) joined[joined.length - 1] = runBetween(last.address, endOf(run));
    else joined.push(run);
  }
  return joined;
}

/** Nothing was recorded yet. */
export const EMPTY_WORKING_SET: WorkingSet = workingSet({
  recordings: 0,
  stable: false,
  exact: true,
  order: "address",
  faults: 0,
  overhead: 0,
  runs: [],
});

const FILE_VERSION = 2;
const FILE_NAME = "thaw-working-set";
const PAGES_MAX = 2 ** 40;

const bodySchema = z.object({
  recordings: z.int().positive(),
  stable: z.boolean(),
  exact: z.boolean(),
  order: z.enum(["address", "access"]),
  faults: z.int().nonnegative(),
  overhead: z.int().nonnegative(),
  runs: z.array(z.int()),
  packed: z.boolean().optional(),
  rehearsed: z.boolean().optional(),
  event: z.int().nonnegative().optional(),
});

/** The bytes of a working-set file. */
export function encodeWorkingSet(set: WorkingSetFacts): Buffer {
  const { recordings, stable, exact, order, faults, overhead, packed, rehearsed, event } = set;
  const runs: number[] = [];
  let end = 0;
  for (const run of set.runs) {
    const page = pageAt(run.address);
    runs.push(page - end, run.pages, run.written, run.read);
    end = page + run.pages;
  }
  const body = { recordings, stable, exact, order, faults, overhead, runs, packed, rehearsed, event };
  return encodeSealed(FILE_NAME, FILE_VERSION, body);
}

/** Parses a working-set file; undefined when it is damaged in any way or of another version (it is then recorded anew). */
export function decodeWorkingSet(bytes: Buffer): WorkingSet | undefined {
  const parsed = bodySchema.safeParse(decodeSealed(FILE_NAME, FILE_VERSION, bytes));
  if (!parsed.success) return undefined;
  const runs = decodeRuns(parsed.data.runs, parsed.data.recordings);
  return runs === undefined ? undefined : workingSet({ ...parsed.data, runs });
}

function decodeRuns(numbers: readonly number[], recordings: number): CountedRun[] | undefined {
  if (numbers.length % 4 !== 0) return undefined;
  const runs: CountedRun[] = [];
  let end = 0;
  for (let index = 0; index < numbers.length; index += 4) {
    const [gap = 0, pages = 0, written = 0, read = 0] = numbers.slice(index, index + 4);
    const page = end + gap;
    const seen = written + read;
    if (page < 0 || pages < 1 || page + pages > PAGES_MAX || written < 0 || read < 0 || seen < 1 || seen > recordings)
      return undefined;
    runs.push({ address: addressOf(page), pages, written, read });
    end = page + pages;
  }
  return runs;
}
