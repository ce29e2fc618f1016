/**
 * Databases of SQLite in /tmp that are open. SQLite tells by device and inode number which of its connections have one file open, because the kernel takes them
 * all for one process: only so they see each other's locks. In a clone /tmp is another device, so that a connection of before the freeze and one of after it
 * would take one file for two. Here is found where in memory the number of the device stands, and each clone writes its own there.
 *
 *   unixFile (one for each connection)         unixInodeInfo (one for each file)
 *   ┌─────────┬──────┬────────┬────────────┐   ┌────────┬───────┬───
 *   │ methods │ vfs  │ inode ─┼─▶ … descr. │   │ device │ inode │ …
 *   └─────────┴──────┴────────┴────────────┘   └────────┴───────┴───
 *   0         8      16       24               0        8
 *
 * Both have been so since SQLite 3.7 (src/os_unix.c). Two numbers alone may be anything, a `struct stat` for one; what is written to is only where a pointer
 * leads that has a descriptor of that very file behind it.
 */
import { type FileHandle, open } from "node:fs/promises";
import { PAGE_BYTES } from "../base/units.js";
import { PROT_WRITE, SYS } from "../linux/syscalls.js";
import { type Facts, type Region, storedRuns } from "./facts.js";
import type { ProgramBuilder } from "./program.js";

type Address = Facts["databases"][number];

interface Database {
  readonly device: bigint;
  readonly inode: bigint;
  /** Nothing was written to it yet: it may be no database. */
  readonly empty?: 1 | undefined;
  readonly path: string;
  readonly fds: readonly number[];
}

const WORD_BYTES = 8;
const STAT_BYTES = 144;
const PIECE_BYTES = 1 << 18;
/** So that what lies across the end of a piece is found: no structure that is looked for is longer. */
const FOUND_BYTES = 2 * WORD_BYTES;
/** Each more of these is one more pass over memory, for which a function pays with nothing. */
const FILES_MAX = 4;
const PLACES_MAX = 16;

const KINDS: readonly Region["kind"][] = ["anon", "heap", "overlay"];

/** Stored memory that the process may write, piece by piece. */
async function* memory(facts: Facts, pages: FileHandle): AsyncGenerator<{ at: bigint; bytes: Buffer }> {
  for (const region of facts.regions) {
    if (!KINDS.includes(region.kind) || (region.prot & PROT_WRITE) === 0) continue;
    for (const run of storedRuns(region)) {
      const offset = Number((region.slot ?? 0n) + run.address - region.start);
      const length = run.pages * PAGE_BYTES;
      for (let from = 0; from < length; from += PIECE_BYTES) {
        const bytes = Buffer.allocUnsafe(Math.min(PIECE_BYTES + FOUND_BYTES, length - from));
        const { bytesRead } = await pages.read(bytes, 0, bytes.length, offset + from);
        yield { at: run.address + BigInt(from), bytes: bytes.subarray(0, bytesRead) };
      }
    }
  }
}

/** What is looked for, and where the first ones are. `holds` looks at the bytes from there on. */
interface Wanted {
  readonly words: readonly bigint[];
  readonly holds?: (bytes: Buffer) => boolean;
  readonly max: number;
  readonly found: bigint[];
}

async function search(facts: Facts, pages: FileHandle, all: readonly Wanted[]): Promise<void> {
  const patterns = all.map(({ words }) => {
    const bytes = Buffer.alloc(words.length * WORD_BYTES);
    for (const [index, word] of words.entries()) bytes.writeBigUInt64LE(word, index * WORD_BYTES);
    return bytes;
  });
  for await (const { at, bytes } of memory(facts, pages)) {
    for (const [index, { holds, max, found }] of all.entries()) {
      const pattern = patterns[index] ?? bytes;
      for (let hit = -1; found.length < max; ) {
        hit = bytes.indexOf(pattern, hit + 1);
        if (hit === -1 || hit >= PIECE_BYTES) break;
        if (hit % WORD_BYTES === 0 && holds?.(bytes.subarray(hit)) !== false) found.push(at + BigInt(hit));
      }
    }
  }
}

/** Where the numbers of a file are SQLite's: something leads there that has a descriptor of that file behind it. */
async function lookFor(
  files: readonly Database[],
  facts: Facts,
  path: string,
): Promise<(Address & { readonly inode: bigint })[]> {
  const pages = await open(path);
  try {
    const infos = files.map(({ device, inode }): Wanted => ({ words: [device, inode], max: PLACES_MAX, found: [] }));
    await search(facts, pages, infos);
    const likely = infos.flatMap(({ found }, index) => found.map((at) => ({ at, file: files[index] as Database })));
    const leads = likely.map(({ at, file }): Wanted => {
      const holds = (bytes: Buffer): boolean => bytes.length >= 12 && file.fds.includes(bytes.readInt32LE(WORD_BYTES));
      return { words: [at], holds, max: 1, found: [] };
    });
    await search(facts, pages, leads);
    return likely
      .filter((_, index) => leads[index]?.found.length === 1)
      .map(({ at, file }) => ({ at, fd: file.fds[0] as number, inode: file.inode }));
  } finally {
    await pages.close();
  }
}

function databasesOf({ descriptors }: Facts): Database[] {
  const files = new Map<bigint, Database>();
  for (const one of descriptors) {
    if (one.kind !== "file" || one.database === undefined) continue;
    const { inode } = one.database;
    files.set(inode, { ...one.database, path: one.path, fds: [...(files.get(inode)?.fds ?? []), one.fd] });
  }
  return [...files.values()].sort((a, b) => (a.empty ?? 0) - (b.empty ?? 0));
}

/** Where the process notes the device of each database that it has open; and a note for each of which that was not found. */
export async function findDatabases(facts: Facts, path: string): Promise<{ databases: Address[]; notes: string[] }> {
  const files = databasesOf(facts);
  const found = files.length === 0 ? [] : await lookFor(files.slice(0, FILES_MAX), facts, path);
  const lost = files.filter(({ inode, empty }) => empty === undefined && !found.some((one) => one.inode === inode));
  return {
    databases: found.map(({ at, fd }) => ({ at, fd })),
    notes: lost.map(
      ({ path, fds }) =>
        `a database of SQLite is open (${path}, descriptor ${fds[0]}): connections that are opened after a thaw do not see its locks`,
    ),
  };
}

/** Once all descriptors are open. */
export function compileDatabases(program: ProgramBuilder, { databases }: Facts): void {
  for (const { at, fd } of databases) {
    const is = program.data(Buffer.alloc(STAT_BYTES));
    const device = program.slot();
    program.call(`look at descriptor ${fd}`, SYS.fstat, [fd, is]);
    program.load(`device of descriptor ${fd}`, is, { result: device });
    // The kernel tells 32 bits, so that the others are zeros before and after.
    program.poke(at, device, 4);
    program.release(device);
  }
}
