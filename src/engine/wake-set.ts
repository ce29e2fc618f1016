/**
 * What a wake will need: the pages that were present when a woken instance was hibernated again, so touched since its wake (REAP, 2021,
 * §5.2, and Hibernate Container, 2023, §3.4: the working set of the last requests is that of the next). It is larger than what was
 * touched where the kernel mapped neighbours that lay in the page cache. Two recordings are kept: what one wake did not touch is
 * forgotten by the second.
 */
import type { Keeper, PrefetchRange } from "./keeper.js";

/** Reading a short gap costs less than another range (3.3 ms for 516 pages in 200 ranges, 3.4 with gaps of 8 read too). */
const GAP_BYTES = 0;
const RANGES_MAX = 4096;

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

export class WakeSet {
  /** Of the file that holds the instance's memory: the last recording, and the one before. */
  #own: readonly (readonly Range[])[] = [];
  #others: readonly PrefetchRange[] = [];

  /** How many pages a wake reads ahead. */
  get pages(): number {
    const others = this.#others.reduce((sum, { bytes }) => sum + bytes, 0);
    return (bytesOf(this.#merged()) + others) / 4096;
  }

  /** In the order in which they should be read. `file`: the keeper's id of the file that holds its memory. */
  ranges(file: number): PrefetchRange[] {
    const own = this.#merged().map(({ offset, end }) => ({ file, offset: BigInt(offset), bytes: end - offset }));
    return [...own, ...this.#others].slice(0, RANGES_MAX);
  }

  /** Takes what the extractor found touched in a woken instance. */
  async record(files: MappedFiles, pid: number, touched: unknown, others: unknown): Promise<void> {
    this.#own = [rangesOf(touched), ...this.#own].slice(0, 2);
    const found: PrefetchRange[] = [];
    for (const { file, mapping, ranges } of others as { file: string; mapping: string; ranges: unknown }[]) {
      const list = merge(rangesOf(ranges));
      const id = list.length === 0 ? undefined : await files.open(pid, file, mapping);
      if (id === undefined) continue;
      for (const { offset, end } of list) found.push({ file: id, offset: BigInt(offset), bytes: end - offset });
    }
    this.#others = found;
  }

  #merged(): Range[] {
    return merge(this.#own.flat());
  }
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

function merge(ranges: readonly Range[]): Range[] {
  const merged: { offset: number; end: number }[] = [];
  for (const { offset, end } of [...ranges].sort((a, b) => a.offset - b.offset)) {
    const last = merged.at(-1);
    if (last !== undefined && offset - last.end <= GAP_BYTES) last.end = Math.max(last.end, end);
    else merged.push({ offset, end });
  }
  return merged;
}

function bytesOf(ranges: readonly Range[]): number {
  return ranges.reduce((sum, { offset, end }) => sum + end - offset, 0);
}
