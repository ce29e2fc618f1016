/**
 * What a wake will need: the pages that earlier wakes touched (REAP, 2021, §5.2, and Hibernate Container, 2023, §3.4: the working set of the
 * last requests is that of the next).
 *
 * Three wakes are watched (wake-watch.ts), which tells exactly what each touched. Of its own memory, what two of them touched is read ahead, of
 * files that others map, too, what any touched. Where none was
 * watched yet, the pages that were present when a woken instance was hibernated again stand in: more than was touched, for the kernel
 * maps neighbours that lie in the page cache. Of these two recordings are kept, of files that others map, too, four.
 *
 * Memory that a program fills from one end, as V8 does its young generation, is never the same twice:
 *
 *     written before the last hibernation   ▓▓▓▓▓
 *     … and since                               ▓▓▓▓          goes on where the other ended: a front
 *     read ahead                            as recorded ░░░░  what it will write next, which would be a read from disk for each page
 */
import { PAGE_BYTES } from "../base/units.js";
import { ByAddress } from "../image/index.js";
import { encodePrefetch, type PrefetchRange } from "./keeper-messages.js";
import type { MappedFiles } from "./mapped-files.js";
import type { Touches } from "./wake-watch.js";

const RANGES_MAX = 4096;
/** Of its own memory, what one wake did not touch is forgotten by the second. */
const RECORDINGS = 2;
/** Which of the cached neighbours of a page of code were mapped with it changes from wake to wake; to miss one costs most. */
const SHARED_RECORDINGS = 4;
const OWN_FILE = "";
const WATCHED = 3;
const WATCHED_NEEDED = 2;
/** At most so many of the pages that each wake writes stay where they are: 0.5 MB, as much as all the rest that a hibernated instance leaves. */
const KEPT_BYTES_MAX = 128 * PAGE_BYTES;
/** Pages of a range that nobody asked for cost less than another read (image/prefetch.ts). */
const GAP_BYTES = 4 * PAGE_BYTES;
/** A wake does not fit when more faults than this, and than this part of the set's pages, had to wait for a disk. */
const OUTSIDE_MIN = 64;
const OUTSIDE_PART = 0.25;
/** After so many of those another wake is watched; after twice as many the next, for some functions never touch the same pages. */
const MISFITS = 4;
const MISFITS_MAX = 1024;
/** Read ahead behind a front: what a few requests write, or as much as was written the last time. */
const FRONT_BYTES = 16 * PAGE_BYTES;
const FRONT_BYTES_MAX = 64 * PAGE_BYTES;

interface Range {
  readonly offset: number;
  readonly end: number;
}

/** Ranges of one file; the last recording is the first. */
type Recordings = readonly (readonly Range[])[];

/** What was present or touched, by device and inode; the file that holds the instance's memory is {@link OWN_FILE}. */
type Recording = ReadonlyMap<string, { readonly mapping: string; readonly ranges: readonly Range[] }>;

/** What wakes of one instance need from disk, and what they write: learned from those that were. */
export class WakeSet {
  /** By device and inode; the file that holds the instance's memory has no such name here. */
  readonly #recordings = new Map<string, Recordings>();
  /** Wakes that were watched, newest last. */
  #watched: readonly Recording[] = [];
  /** What each of them wrote. */
  #watchedWritten: Recordings = [];
  #kept: readonly Range[] = [];
  #misfits = 0;
  #misfitsMax = MISFITS;
  /** What was written between the last two hibernations. */
  #written: readonly Range[] = [];
  #fronts: readonly Range[] = [];
  /** Of files that others map, and of its own memory, be it kept or not. */
  #recorded: readonly PrefetchRange[] = [];
  #own: readonly Range[] = [];
  /**
   * What to read ahead, in order. Of files that others map first: code is among them, and a fault in it that comes before its read was asked
   * for brings megabytes (image/compile-advice.ts).
   */
  ranges: readonly PrefetchRange[] = [];
  /** The same as the keeper takes it, in two parts: nothing may be worked out when a request waits. */
  ofFiles: readonly Buffer[] = [];
  ofOwn: readonly Buffer[] = [];

  /** How many pages a wake reads ahead. */
  get pages(): number {
    return this.ranges.reduce((sum, { bytes }) => sum + bytes, 0) / PAGE_BYTES;
  }

  /** Whether the next wake shall be watched. */
  get wanting(): boolean {
    return this.#watched.length < WATCHED || this.#misfits >= this.#misfitsMax;
  }

  /**
   * What shall stay in memory at the next hibernation, in its file: offset and length by turns. Nothing where the wake after it is to be
   * watched, for that tells what is touched by what is there.
   */
  get kept(): readonly number[] {
    return this.wanting ? [] : this.#kept.flatMap(({ offset, end }) => [offset, end - offset]);
  }

  /**
   * Takes what the extractor found present in a woken instance: too much, so it counts only until a wake was watched. `file`: the
   * keeper's id of the file that holds its memory.
   */
  async record(file: number, files: MappedFiles, pid: number, touched: unknown, others: unknown): Promise<void> {
    if (this.#watched.length > 0) return;
    const merged = new Map<string, { mapping: string; ranges: Range[] }>();
    for (const [key, { mapping, ranges }] of recordingOf(touched, others))
      merged.set(key, { mapping, ranges: this.#merged(key, ranges, key === OWN_FILE ? RECORDINGS : SHARED_RECORDINGS) });
    this.#recorded = await rangesOfOthers(this, merged, files, pid);
    this.#own = merged.get(OWN_FILE)?.ranges ?? [];
    this.#settle(file);
  }

  /** Takes what of its own memory the extractor found written since the last hibernation. */
  recordWritten(file: number, written: unknown): void {
    const now = join(rangesOf(written), 0);
    this.#fronts = frontsOf(this.#written, this.#fronts, now);
    this.#written = now;
    this.#settle(file);
  }

  /** Takes exactly what a wake and its first request touched. */
  async recordWatched(
    file: number,
    files: MappedFiles,
    pid: number,
    { touched, written, files: others }: Touches,
  ): Promise<void> {
    if (this.#misfits >= this.#misfitsMax) {
      this.#misfits = 0;
      this.#misfitsMax = Math.min(this.#misfitsMax * 2, MISFITS_MAX);
    }
    this.#watched = [...this.#watched, recordingOf(touched, others)].slice(-WATCHED);
    this.#watchedWritten = [...this.#watchedWritten, rangesOf(written)].slice(-WATCHED);
    this.#kept = this.#watched.length < WATCHED ? [] : keptOf(seenBy(this.#watchedWritten, WATCHED_NEEDED));
    const often = new Map<string, { mapping: string; ranges: Range[] }>();
    for (const key of new Set(this.#watched.flatMap((one) => [...one.keys()]))) {
      const each = this.#watched.flatMap((one) => one.get(key) ?? []);
      const mapping = each.at(-1)?.mapping ?? "";
      const lists = each.map(({ ranges }) => ranges);
      // To miss a page of code costs most.
      const needed = key !== OWN_FILE || this.#watched.length < WATCHED ? 1 : WATCHED_NEEDED;
      const seen = seenBy(lists, needed);
      often.set(key, { mapping, ranges: key === OWN_FILE ? seen : join(seen, GAP_BYTES) });
    }
    this.#recorded = await rangesOfOthers(this, often, files, pid);
    this.#own = often.get(OWN_FILE)?.ranges ?? [];
    this.#settle(file);
  }

  /** Takes note of the first request after a wake: faults that had to wait for a disk. */
  note(faultsOutside: number): void {
    if (this.#watched.length === WATCHED && faultsOutside > Math.max(OUTSIDE_MIN, this.pages * OUTSIDE_PART)) this.#misfits++;
  }

  #settle(file: number): void {
    // A hibernation whose wake is to be watched kept nothing: then that, too, has to be read.
    const kept = this.wanting ? [] : this.#kept;
    const own = this.#watched.length === 0 ? this.#own : join(without(this.#own, kept), GAP_BYTES);
    this.ranges = [...this.#recorded, ...[...own, ...this.#fronts].map((range) => prefetchOf(file, range))].slice(0, RANGES_MAX);
    this.ofFiles = encodePrefetch(this.ranges.filter((range) => range.file !== file));
    this.ofOwn = encodePrefetch(this.ranges.filter((range) => range.file === file));
  }

  #merged(file: string, touched: readonly Range[], count: number): Range[] {
    const recordings = [touched, ...(this.#recordings.get(file) ?? [])].slice(0, count);
    this.#recordings.set(file, recordings);
    return join(recordings.flat(), 0);
  }
}

async function rangesOfOthers(user: WakeSet, recording: Recording, files: MappedFiles, pid: number): Promise<PrefetchRange[]> {
  const found: PrefetchRange[] = [];
  for (const [key, { mapping, ranges }] of recording) {
    const id = ranges.length === 0 || key === OWN_FILE ? undefined : await files.open(user, pid, key, mapping);
    if (id !== undefined) found.push(...ranges.map((range) => prefetchOf(id, range)));
  }
  return found;
}

/** The shortest first: on a disk each is a read of its own, however short. In order of their places again. */
function keptOf(written: readonly Range[]): Range[] {
  const kept: Range[] = [];
  let room = KEPT_BYTES_MAX;
  for (const { offset, end } of [...written].sort((a, b) => a.end - a.offset - (b.end - b.offset))) {
    if (room === 0) break;
    const bytes = Math.min(end - offset, room);
    kept.push({ offset, end: offset + bytes });
    room -= bytes;
  }
  return kept.sort((a, b) => a.offset - b.offset);
}

/** Of lists in order, and disjoint: what lies behind each range that reaches beyond the end of one before, or that ends where an earlier front still begins. */
function frontsOf(before: readonly Range[], earlier: readonly Range[], now: readonly Range[]): Range[] {
  const ends = new ByAddress(before, (one) => one.end);
  const fronts = new Map(earlier.map((front) => [front.offset, front]));
  return now.flatMap(({ offset, end }) => {
    // The first that ends where this one begins, or behind.
    const old = before[ends.firstEndingAfter(offset - 1)];
    if (old === undefined || old.end >= end) return fronts.get(end) ?? [];
    const bytes = Math.min(FRONT_BYTES_MAX, Math.max(FRONT_BYTES, end - old.end));
    return [{ offset: end, end: end + bytes }];
  });
}

function recordingOf(touched: unknown, others: unknown): Recording {
  const recording = byFile(others as readonly Touched[]);
  recording.set(OWN_FILE, { mapping: "", ranges: rangesOf(touched) });
  return recording;
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

/** Parts that at least so many of the lists have. */
function seenBy(lists: readonly (readonly Range[])[], needed: number): Range[] {
  // What one list has twice counts once.
  const edges = lists.flatMap((ranges) =>
    join(ranges, 0).flatMap(({ offset, end }) => [
      { at: offset, change: 1 },
      { at: end, change: -1 },
    ]),
  );
  edges.sort((a, b) => a.at - b.at || b.change - a.change);
  const seen: Range[] = [];
  let inside = 0;
  let from = 0;
  for (const { at, change } of edges) {
    if (change < 0 && inside === needed && at > from) seen.push({ offset: from, end: at });
    inside += change;
    if (change > 0 && inside === needed) from = at;
  }
  return seen;
}

/** What of the ranges none of the others has. Both in order, and disjoint. */
function without(ranges: readonly Range[], others: readonly Range[]): Range[] {
  return ranges.flatMap(({ offset, end }) => {
    const left: Range[] = [];
    let at = offset;
    for (const other of others.filter((one) => one.offset < end && one.end > offset)) {
      if (other.offset > at) left.push({ offset: at, end: other.offset });
      at = other.end;
    }
    if (at < end) left.push({ offset: at, end });
    return left;
  });
}

/** In order, and one where no more than `gapBytes` lie between two. */
function join(ranges: readonly Range[], gapBytes: number): Range[] {
  const joined: { offset: number; end: number }[] = [];
  for (const { offset, end } of [...ranges].sort((a, b) => a.offset - b.offset)) {
    const last = joined.at(-1);
    if (last !== undefined && offset <= last.end + gapBytes) last.end = Math.max(last.end, end);
    else joined.push({ offset, end });
  }
  return joined;
}
