/**
 * From the working set to bytes of files: which part of which file a start needs from disk, and in what order. Pages of the
 * image lie in its page space and its base's, all others in the files that are mapped; zero pages are holes and are never read.
 */
import { PAGE_BYTES } from "../base/units.js";
import { readPages } from "./compile-memory.js";
import { type Facts, isFile, type Region, storedRuns } from "./facts.js";
import { forecast } from "./likelihood.js";
import { clipRuns, endOf, gapsIn, type PageRun, runPages } from "./page-runs.js";
import type { WorkingSet } from "./working-set.js";

/** Pages of a range that nobody asked for cost less than another read: measured on a virtual disk (docs/design/working-set.md). */
const GAP_BYTES = 4 * PAGE_BYTES;

/** The page space among the files of ranges. */
export const PAGES = "pages";
/** … and that of the image's base. */
export const BASE = "base";

/** One part of a file. */
export interface FileRange {
  /** {@link PAGES}, {@link BASE}, or a path as the function sees it. */
  readonly file: string;
  readonly offset: bigint;
  readonly bytes: number;
}

/** Where the pages of a working set come from. Counts of pages. */
export interface PageClasses {
  /** Stored in the page space, or in the base's. */
  readonly image: number;
  /** In files of the interpreter, its libraries and the function. */
  readonly file: number;
  /** Zeros: memory that held nothing when it was frozen. */
  readonly zero: number;
}

/** Pages by class. */
export function classify(facts: Facts, runs: readonly PageRun[]): PageClasses {
  const counts = { image: 0, file: 0, zero: 0 };
  const space = new Stored();
  for (const { run, region } of placed(facts, runs)) {
    if (isFile(region)) counts.file += run.pages;
    else {
      const stored = runPages(space.part(region, run));
      counts.image += stored;
      counts.zero += run.pages - stored;
    }
  }
  return counts;
}

/**
 * What a start reads: the stack (read by the husk itself), then code, then what is written, then what is only read, first what most
 * recordings touched and last what depends on the input, as far as it is likely enough (likelihood.ts). Within each part in the order of access when the set has it, else by
 * file and offset; ranges of one file that are at most four pages apart are one. Not so in a page space that is packed: there the pages
 * between them lie elsewhere on the disk.
 */
export function prefetchRanges(facts: Facts, set: WorkingSet): FileRange[] {
  const space = new Stored();
  const often = placed(facts, set.readOften);
  const early = ({ region }: { region: Region }): boolean => set.order === "address" && isCode(region);
  const parts = [
    // By the program itself.
    placed(
      facts,
      readPages(facts).flatMap(({ runs }) => runs),
    ),
    often.filter(early),
    placed(facts, set.written),
    often.filter((one) => !early(one)),
    placed(facts, forecast(set).likely),
  ];
  return parts.flatMap((part) => {
    const ranges = part.flatMap(({ run, region }) => rangesOf(space, region, run));
    if (set.order === "address") ranges.sort(byPlace);
    return joinRanges(ranges, ({ file }) => (set.packed === true && file === PAGES ? 0 : GAP_BYTES));
  });
}

const PROT_EXEC = 4;

/** A fault in code that comes before its read was asked for reads as much as the device reads ahead (compile-advice.ts). */
function isCode(region: Region): boolean {
  return isFile(region) && (region.prot & PROT_EXEC) !== 0;
}

/** Each run, cut where mappings begin and end. An overlay lies on its file. */
function placed(facts: Facts, runs: readonly PageRun[]): { run: PageRun; region: Region }[] {
  const regions = [...facts.regions]
    .filter(({ kind }) => kind !== "vdso")
    .sort((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0));
  const overlays = regions.filter(({ kind }) => kind === "overlay");
  const plain = regions.filter(({ kind }) => kind !== "overlay");
  return runs.flatMap((run) => {
    const over = cut(overlays, run);
    const rest = gapsIn(
      run,
      over.map((part) => part.run),
    );
    const under = rest.flatMap((part) => cut(plain, part));
    return [...over, ...under].map(({ run: part, span }) => ({ run: part, region: span }));
  });
}

interface Span {
  readonly start: bigint;
  readonly end: bigint;
}

/** The parts of a run inside each of these, which are sorted and do not overlap. */
function cut<T extends Span>(spans: readonly T[], run: PageRun): { run: PageRun; span: T }[] {
  const parts: { run: PageRun; span: T }[] = [];
  for (let index = firstEndingAfter(spans, run.address); index < spans.length; index++) {
    const span = spans[index] as T;
    if (span.start >= endOf(run)) break;
    for (const part of clipRuns([run], span.start, span.end)) parts.push({ run: part, span });
  }
  return parts;
}

function firstEndingAfter(spans: readonly Span[], address: bigint): number {
  let low = 0;
  let high = spans.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((spans[middle] as Span).end > address) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The stored runs of regions, listed once: a set has thousands of runs, and so has a region. */
class Stored {
  readonly #byRegion = new Map<Region, readonly Span[]>();

  /** The part of a run that the page space holds. */
  part(region: Region, run: PageRun): PageRun[] {
    let spans = this.#byRegion.get(region);
    if (spans === undefined) {
      spans = storedRuns(region).map((stored) => ({ start: stored.address, end: endOf(stored) }));
      this.#byRegion.set(region, spans);
    }
    return cut(spans, run).map((part) => part.run);
  }
}

function rangesOf(space: Stored, region: Region, run: PageRun): FileRange[] {
  const range = (file: string, base: bigint, { address, pages }: PageRun): FileRange => ({
    file,
    offset: base + (address - region.start),
    bytes: pages * PAGE_BYTES,
  });
  if (isFile(region)) return [range(region.path ?? "", region.offset ?? 0n, run)];
  return space.part(region, run).map((part) => range(region.kind === "base" ? BASE : PAGES, region.slot ?? 0n, part));
}

function byPlace(a: FileRange, b: FileRange): number {
  if (a.file !== b.file) return a.file < b.file ? -1 : 1;
  return a.offset < b.offset ? -1 : a.offset > b.offset ? 1 : 0;
}

/** What packing moves, in the order in which starts will read it; see engine/packing.ts. */
export function packedRanges(facts: Facts, set: WorkingSet): FileRange[] {
  return prefetchRanges(facts, { ...set, packed: true }).filter(({ file }) => file === PAGES);
}

function joinRanges(ranges: readonly FileRange[], gapOf: (range: FileRange) => number): FileRange[] {
  const joined: FileRange[] = [];
  for (const range of ranges) {
    const last = joined.at(-1);
    const end = last === undefined ? 0n : last.offset + BigInt(last.bytes);
    if (
      last !== undefined &&
      last.file === range.file &&
      range.offset >= last.offset &&
      range.offset <= end + BigInt(gapOf(range))
    ) {
      const rangeEnd = range.offset + BigInt(range.bytes);
      if (rangeEnd > end) joined[joined.length - 1] = { ...last, bytes: Number(rangeEnd - last.offset) };
    } else joined.push(range);
  }
  return joined;
}
