/** The contents of /tmp as system calls: names, bytes, links, times, and the inode numbers that programs remember. */
import { dirname } from "node:path";
import { AT_FDCWD, O_CLOEXEC, O_CREAT, O_RDWR, O_TMPFILE, O_TRUNC, SYS } from "../linux/syscalls.js";
import type { TmpEntry } from "./facts.js";
import type { ProgramBuilder } from "./program.js";

/** Inode numbers of a fresh tmpfs count up; its root takes the one before this. */
const FIRST_INODE = 2;
/** Set user id and set group id. */
const SET_ID_BITS = 0o6000;
/** Numbers of files that are gone by now are used up by as many nameless ones, up to this many. */
const SKIPPED_INODES_MAX = 2000;

function makeTmpEntry(program: ProgramBuilder, entry: TmpEntry, at: string, contents: Buffer): void {
  const label = `make ${entry.path}`;
  const path = program.text(at);
  if (entry.type === "directory") {
    program.call(label, SYS.mkdir, [path, entry.mode]);
  } else if (entry.type === "link") {
    program.call(label, SYS.symlink, [program.text(entry.target), path]);
  } else {
    const fd = program.slot();
    const bytes = contents.subarray(entry.at, entry.at + entry.bytes);
    program.call(label, SYS.openat, [AT_FDCWD, path, O_CREAT | O_TRUNC | O_CLOEXEC | 1, entry.mode], { result: fd });
    if (bytes.length > 0)
      program.call(`fill ${entry.path}`, SYS.write, [fd, program.data(bytes), bytes.length], { expect: bytes.length });
    program.call(`close ${entry.path}`, SYS.close, [fd]);
    program.release(fd);
  }
}

/**
 * Files get the inode numbers that they had, because programs remember them (SQLite refuses to write to a database whose
 * number changed): made in the order of their numbers, and moved to their place where a directory was made after what lies in it.
 */
export function restoreTmp(program: ProgramBuilder, entries: readonly TmpEntry[], contents: Buffer): void {
  const ordered = [...entries].sort((a, b) => a.inode - b.inode);
  const skipped = (ordered.at(-1)?.inode ?? 0) - FIRST_INODE + 1 - new Set(ordered.map(({ inode }) => inode)).size;
  const numbered = (ordered[0]?.inode ?? 0) >= FIRST_INODE && skipped <= SKIPPED_INODES_MAX;
  const places = new Map<number, string>();
  const moved: { from: string; to: string }[] = [];
  const directories = new Set(["/tmp"]);
  let aside = "/tmp/.thaw-";
  while (entries.some(({ path }) => path.startsWith(aside))) aside += "-";
  let next = FIRST_INODE;
  for (const entry of numbered ? ordered : entries) {
    const there = numbered ? places.get(entry.inode) : undefined;
    const at = directories.has(dirname(entry.path)) ? entry.path : `${aside}${moved.length}`;
    if (at !== entry.path) moved.push({ from: at, to: entry.path });
    else if (entry.type === "directory") directories.add(entry.path);
    if (there !== undefined) {
      program.call(`make ${entry.path}`, SYS.link, [program.text(there), program.text(at)]);
      continue;
    }
    for (; numbered && next < entry.inode; next++) {
      const fd = program.slot();
      program.call("skip an inode number", SYS.openat, [AT_FDCWD, program.text("/tmp"), O_TMPFILE | O_RDWR | O_CLOEXEC, 0], {
        result: fd,
      });
      program.call("skip an inode number", SYS.close, [fd]);
      program.release(fd);
    }
    next++;
    makeTmpEntry(program, entry, at, contents);
    places.set(entry.inode, at);
  }
  // Directories come before what lies in them, as the entries do.
  for (const { path } of entries) {
    const from = moved.find(({ to }) => to === path)?.from;
    if (from !== undefined) program.call(`move ${path}`, SYS.rename, [program.text(from), program.text(path)]);
  }
  // Making a directory and writing to a file leave these bits out.
  for (const entry of entries) {
    if (entry.type === "link" || (entry.mode & SET_ID_BITS) === 0) continue;
    program.call(`mode of ${entry.path}`, SYS.chmod, [program.text(entry.path), entry.mode]);
  }
  for (const entry of entries) {
    if (entry.type === "link") continue;
    for (const { name, value } of entry.attributes ?? []) {
      const named = program.data(Buffer.concat([name, Buffer.alloc(1)]), 1);
      const args = [program.text(entry.path), named, program.data(value), value.length, 0];
      program.call(`attribute of ${entry.path}`, SYS.setxattr, args);
    }
  }
  // Times last, innermost first: making a file touches its directory.
  for (const entry of [...entries].reverse()) {
    const times = Buffer.alloc(32);
    const { mtimeS, mtimeNs, atimeS = mtimeS, atimeNs = mtimeNs } = entry;
    for (const [index, part] of [atimeS, atimeNs, mtimeS, mtimeNs].entries()) times.writeBigInt64LE(BigInt(part), index * 8);
    const symlinkNoFollow = 0x100;
    program.call(`times of ${entry.path}`, SYS.utimensat, [
      AT_FDCWD,
      program.text(entry.path),
      program.data(times),
      symlinkNoFollow,
    ]);
  }
}
