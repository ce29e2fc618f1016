/**
 * Files that survive a crash whole or not at all. A rename is atomic, but it may reach the disk before the bytes
 * it names, and the directory entry may be lost although the bytes are there. So: write under a temporary
 * name, fsync the file, rename, fsync the directory (rename(2), fsync(2) "Notes").
 */
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { access, lstat, mkdir, open, readdir, rename, rm, rmdir, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** What every temporary name begins with; a server that starts may remove whatever carries it. */
export const TEMPORARY_PREFIX = ".tmp-";

/** As many as keep the threads of Node's pool busy, and the event loop for a moment. */
const REMOVED_AT_ONCE = 16;

/** A fresh name beside `path`: on the same file system, and recognisable as temporary. */
export function temporaryPath(path: string): string {
  return join(dirname(path), `${TEMPORARY_PREFIX}${basename(path)}-${randomBytes(6).toString("hex")}`);
}

/** Flushes one file, or the entries of one directory, to disk. */
async function fsyncPath(path: string): Promise<void> {
  const file = await open(path, "r");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Flushes every file and directory below `path`, and `path` itself. Symbolic links are part of their directory. */
export async function fsyncTree(path: string): Promise<void> {
  for (const entry of await readdir(path, { withFileTypes: true })) {
    const child = join(path, entry.name);
    if (entry.isDirectory()) await fsyncTree(child);
    else if (entry.isFile()) await fsyncPath(child);
  }
  await fsyncPath(path);
}

/** As {@link fsyncTree} for very many files: flushes all that the file system of `path` has to write, other programs' too. syncfs(2), which Node lacks, by coreutils' `sync`, where that is. */
export async function syncFileSystem(path: string): Promise<void> {
  try {
    await run("sync", ["-f", "--", path]);
  } catch (error) {
    if ((error as { code?: unknown }).code !== "ENOENT") throw error;
    await fsyncTree(path);
  }
}

/** Renames and flushes both directories concerned. The content must have been flushed before. */
export async function renameDurably(from: string, to: string): Promise<void> {
  await rename(from, to);
  await fsyncPath(dirname(to));
  if (dirname(from) !== dirname(to)) await fsyncPath(dirname(from));
}

/** Replaces `path` by `content` as one step: a reader, or a restart after a crash, sees the old or the new bytes. */
export async function writeFileDurably(path: string, content: string | Uint8Array): Promise<void> {
  const temporary = temporaryPath(path);
  try {
    const file = await open(temporary, "wx", 0o600);
    try {
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await renameDurably(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/**
 * Makes `path` and its missing parents, as `mkdir` does, and returns the first one made. Fails with the kernel's own reason: of a disk that
 * is full Node (20 to 26) says ENOENT.
 */
export async function mkdirs(path: string, mode = 0o777): Promise<string | undefined> {
  try {
    return await mkdir(path, { recursive: true, mode });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  let first = path;
  while (!(await exists(dirname(first)))) first = dirname(first);
  await mkdir(first, { mode });
  // It was a moment without room.
  await mkdir(path, { recursive: true, mode });
  return first;
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

/** Makes `path` and its missing parents, and flushes the directory of each one made. */
export async function mkdirDurably(path: string): Promise<void> {
  const first = await mkdirs(path, 0o700);
  if (first === undefined) return;
  for (let made = path; made.length >= first.length; made = dirname(made)) await fsyncPath(dirname(made));
}

/**
 * Removes a file or a directory with all in it. What writes there may outlive a killed server by a moment, as its helpers do: a directory that is
 * not empty after all that was in it was removed is emptied again, for five seconds at most.
 */
export async function removeTree(path: string): Promise<void> {
  // Of a link, what it leads to stays.
  if ((await lstat(path).catch(() => undefined))?.isDirectory() === true) await removeInTurn(path);
  await rm(path, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
}

/** What can be: Node's own way is to remove all at once, which holds up the event loop (60,000 files: for 600 ms). */
async function removeInTurn(path: string): Promise<void> {
  const entries = await readdir(path, { withFileTypes: true }).catch(() => []);
  const files = entries.filter((entry) => !entry.isDirectory());
  for (let at = 0; at < files.length; at += REMOVED_AT_ONCE)
    await Promise.allSettled(files.slice(at, at + REMOVED_AT_ONCE).map(({ name }) => unlink(join(path, name))));
  for (const entry of entries) if (entry.isDirectory()) await removeInTurn(join(path, entry.name));
  await rmdir(path).catch(() => undefined);
}

/** Removes what interrupted writes left directly inside `dir`. Returns the names removed; a missing `dir` has none. */
export async function removeTemporaries(dir: string): Promise<string[]> {
  let names: string[];
  try {
    names = await readdir(dir);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
  const temporary = names.filter((name) => name.startsWith(TEMPORARY_PREFIX));
  for (const name of temporary) await removeTree(join(dir, name));
  return temporary;
}
