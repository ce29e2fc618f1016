/**
 * From the working set to bytes of files: which part of which file a start needs from disk, and in what order. Pages of the
 * image lie in its page space and its base's, all others in the files that are mapped; zero pages are holes and are never read.
 */
import { PAGE_BYTES } from "../base/units.js";
import { readPages } from "./compile-memory.js";
import { type Facts, isFile, type Region, storedPages, storedRuns } from "./facts.js";
import { forecast } from "./likelihood.js";
import { ByAddress, clipRun, endOf, gapsIn, type PageRun, runPages, SortedRuns } from "./page-runs.js";
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
  return classifier(facts)(runs);
}

/** The same for several lists of runs. */
export function classifier(facts: Facts): (runs: readonly PageRun[]) => PageClasses {
  const space = new Stored();
  const layout = new Layout(facts);
  return (runs) => {
    const counts = { image: 0, file: 0, zero: 0 };
    for (const { run, region } of placed(layout, runs)) {
      if (isFile(region)) counts.file += run.pages;
      else {
        const stored = runPages(space.part(region, run));
        counts.image += stored;
        counts.zero += run.pages - stored;
      }
    }
    return counts;
  };
}

/**
 * What a start reads: the stack (read by the husk itself), then code, then what is written, then what is only read, first what most
 * recordings touched and last what depends on the input, as far as it is likely enough (likelihood.ts). Within each part in the order of access when the set has it, else by
 * file and offset; ranges of one file that are at most four pages apart are one. Not so in a page space that is packed: there the pages
 * between them lie elsewhere on the disk.
 */
export function prefetchRanges(facts: Facts, set: WorkingSet): FileRange[] {
  const space = new Stored();
  const layout = new Layout(facts);
  const often = placed(layout, set.readOften);
  const early = ({ region }: Placed): boolean => set.order === "address" && isCode(region);
  const parts = [
    // By the program itself.
    placed(
      layout,
      readPages(facts).flatMap(({ runs }) => runs),
    ),
    often.filter(early),
    placed(layout, set.written),
    often.filter((one) => !early(one)),
    placed(layout, forecast(set).likely),
  ];
  return parts.flatMap((part) => {
    const ranges: FileRange[] = [];
    for (const { run, region } of part) addRanges(ranges, space, region, run);
    if (set.order === "address") ranges.sort(byPlace);
    return joinRanges(ranges, ({ file }) => (set.packed === true && file === PAGES ? 0 : GAP_BYTES));
  });
}

const PROT_EXEC = 4;

/** A fault in code that comes before its read was asked for reads as much as the device reads ahead (compile-advice.ts). */
function isCode(region: Region): boolean {
  return isFile(region) && (region.prot & PROT_EXEC) !== 0;
}

/** Mappings by address: those of overlays, and those that they may lie on. */
class Layout {
  readonly overlays: ByAddress<Region>;
  readonly plain: ByAddress<Region>;

  constructor(facts: Facts) {
    const regions = facts.regions
      .filter(({ kind }) => kind !== "vdso")
      .sort((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0));
    const some = (overlays: boolean): ByAddress<Region> =>
      new ByAddress(
        regions.filter(({ kind }) => (kind === "overlay") === overlays),
        ({ end }) => Number(end),
      );
    this.overlays = some(true);
    this.plain = some(false);
  }
}

/** Part of a run, inside one mapping. */
interface Placed {
  readonly run: PageRun;
  readonly region: Region;
}

/** Each run, cut where mappings begin and end. An overlay lies on its file. */
function placed({ overlays, plain }: Layout, runs: readonly PageRun[]): Placed[] {
  const parts: Placed[] = [];
  for (const run of runs) {
    const before = parts.length;
    cut(overlays, run, parts);
    const over = parts.slice(before).map((part) => part.run);
    for (const rest of gapsIn(run, over)) cut(plain, rest, parts);
  }
  return parts;
}

/** Adds the parts of a run inside each of these. */
function cut(regions: ByAddress<Region>, run: PageRun, parts: Placed[]): void {
  const { sorted } = regions;
  for (let index = regions.firstEndingAfter(run.address); index < sorted.length; index++) {
    const region = sorted[index] as Region;
    const part = clipRun(run, region.start, region.end);
    if (part === undefined) break;
    parts.push({ run: part, region });
  }
}

/** A region with no more runs is looked through as it is. */
const FEW_NUMBERS = 16;

/** The stored runs of regions, listed once: a set has thousands of runs, and so may a region have. */
class Stored {
  readonly #byRegion = new Map<Region, SortedRuns>();

  /** The part of a run that the page space holds. */
  part(region: Region, run: PageRun): PageRun[] {
    const { address } = run;
    const end = endOf(run);
    if ((region.runs?.length ?? 0) <= FEW_NUMBERS) return storedRuns(region).flatMap((one) => clipRun(one, address, end) ?? []);
    let stored = this.#byRegion.get(region);
    if (stored === undefined) {
      stored = new SortedRuns(storedRuns(region));
      this.#byRegion.set(region, stored);
    }
    return stored.within(address, end);
  }
}

function addRanges(ranges: FileRange[], space: Stored, region: Region, run: PageRun): void {
  const add = (file: string, base: bigint, { address, pages }: PageRun): void => {
    ranges.push({ file, offset: base + (address - region.start), bytes: pages * PAGE_BYTES });
  };
  if (isFile(region)) add(region.path ?? "", region.offset ?? 0n, run);
  else for (const part of space.part(region, run)) add(region.kind === "base" ? BASE : PAGES, region.slot ?? 0n, part);
}

function byPlace(a: FileRange, b: FileRange): number {
  if (a.file !== b.file) return a.file < b.file ? -1 : 1;
  return a.offset < b.offset ? -1 : a.offset > b.offset ? 1 : 0;
}

/** So many of the stored pages, evenly spread, one range each; all of them where there are fewer. */
export function samplePages(facts: Facts, count: number): FileRange[] {
  const own = facts.regions.filter(({ kind }) => kind !== "base");
  const step = Math.max(1, Math.ceil(own.reduce((sum, region) => sum + storedPages(region), 0) / count));
  const samples: FileRange[] = [];
  let next = Math.floor(step / 2);
  for (const region of own)
    for (const { address, pages } of storedRuns(region)) {
      const offset = (region.slot ?? 0n) + (address - region.start);
      for (; next < pages; next += step)
        samples.push({ file: PAGES, offset: offset + BigInt(next * PAGE_BYTES), bytes: PAGE_BYTES });
      next -= pages;
    }
  return samples;
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
