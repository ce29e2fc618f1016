/**
 * What a wake will need: the pages that were present when a woken instance was hibernated again, so touched since its wake (REAP, 2021,
 * §5.2, and Hibernate Container, 2023, §3.4: the working set of the last requests is that of the next). It is larger than what was
 * touched where the kernel mapped neighbours that lay in the page cache. Two recordings are kept, of files that others map, too, four: what
 * no wake touched meanwhile is forgotten.
 */
import type { Keeper, PrefetchRange } from "./keeper.js";

const PAGE_BYTES = 4096;
const RANGES_MAX = 4096;
/** Of its own memory, what one wake did not touch is forgotten by the second. */
const RECORDINGS = 2;
/** Which of the cached neighbours of a page of code were mapped with it changes from wake to wake; to miss one costs most. */
const SHARED_RECORDINGS = 4;
const OWN_FILE = "";

interface Range {
  readonly offset: number;
  readonly end: number;
}

/** Files that instances map, such as interpreters, opened once for all of them in the keeper. */
export class MappedFiles {
  readonly #ids = new Map<string, Promise<number>>();

  constructor(private readonly keeper: Keeper) {}

  /** `file`: device and inode; `mapping`: addresses of one in process `pid`. Undefined when it is gone. */
  async open(pid: number, file: string, mapping: string): Promise<number | undefined> {
    let id = this.#ids.get(file);
    if (id === undefined) {
      id = this.keeper.openFile(`/proc/${pid}/map_files/${mapping}`);
      this.#ids.set(file, id);
      id.catch(() => this.#ids.delete(file));
    }
    return id.catch(() => undefined);
  }
}

/** Ranges of one file; the last recording is the first. */
type Recordings = readonly (readonly Range[])[];

export class WakeSet {
  /** By device and inode; the file that holds the instance's memory has no such name here. */
  readonly #recordings = new Map<string, Recordings>();
  /** What to read ahead, in order; ready, because nothing may be worked out when a request waits. */
  ranges: readonly PrefetchRange[] = [];

  /** How many pages a wake reads ahead. */
  get pages(): number {
    return this.ranges.reduce((sum, { bytes }) => sum + bytes, 0) / PAGE_BYTES;
  }

  /** Takes what the extractor found touched in a woken instance. `file`: the keeper's id of the file that holds its memory. */
  async record(file: number, files: MappedFiles, pid: number, touched: unknown, others: unknown): Promise<void> {
    // Code first: a fault that comes before its read was asked for brings megabytes behind it (image/compile-advice.ts).
    const found: PrefetchRange[] = [];
    for (const [key, { mapping, ranges }] of byFile(others as readonly Touched[])) {
      const list = this.#merged(key, ranges, SHARED_RECORDINGS);
      const id = list.length === 0 ? undefined : await files.open(pid, key, mapping);
      if (id !== undefined) found.push(...list.map((range) => prefetchOf(id, range)));
    }
    found.push(...this.#merged(OWN_FILE, rangesOf(touched), RECORDINGS).map((range) => prefetchOf(file, range)));
    this.ranges = found.slice(0, RANGES_MAX);
  }

  #merged(file: string, touched: readonly Range[], count: number): Range[] {
    const recordings = [touched, ...(this.#recordings.get(file) ?? [])].slice(0, count);
    this.#recordings.set(file, recordings);
    return merge(recordings.flat());
  }
}

/** What was touched of one mapping of a file, as the extractor tells it. */
interface Touched {
  readonly file: string;
  readonly mapping: string;
  readonly ranges: unknown;
}

/** A file is mapped in several parts. */
function byFile(mappings: readonly Touched[]): Map<string, { mapping: string; ranges: Range[] }> {
  const files = new Map<string, { mapping: string; ranges: Range[] }>();
  for (const { file, mapping, ranges } of mappings) {
    const one = files.get(file) ?? { mapping, ranges: [] };
    one.ranges.push(...rangesOf(ranges));
    files.set(file, one);
  }
  return files;
}

function prefetchOf(file: number, { offset, end }: Range): PrefetchRange {
  return { file, offset: BigInt(offset), bytes: end - offset };
}

function rangesOf(value: unknown): Range[] {
  const list = value as readonly number[];
  const ranges: Range[] = [];
  for (let index = 0; index + 1 < list.length; index += 2) {
    const offset = list[index] ?? 0;
    ranges.push({ offset, end: offset + (list[index + 1] ?? 0) });
  }
  return ranges;
}

/** Without the gaps between them: those would be mapped with their neighbours, count as touched, and the set would grow each time. */
function merge(ranges: readonly Range[]): Range[] {
  const merged: { offset: number; end: number }[] = [];
  for (const { offset, end } of [...ranges].sort((a, b) => a.offset - b.offset)) {
    const last = merged.at(-1);
    if (last !== undefined && offset <= last.end) last.end = Math.max(last.end, end);
    else merged.push({ offset, end });
  }
  return merged;
}
