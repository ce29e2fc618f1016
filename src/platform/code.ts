/**
 * Code packages on disk: unpacked once, at `functions/<name>/<sha256>/`, never changed. A package is unpacked under a
 * temporary name, flushed and renamed, so that a directory with a final name is whole. Files are readable by everyone, because
 * functions run under other user ids; the directory above is the server's alone.
 */
import { statSync } from "node:fs";
import { chmod, mkdir, open, readdir, stat, symlink } from "node:fs/promises";
import { dirname, join, posix } from "node:path";
import { faultPoint } from "../base/fault.js";
import { fsyncTree, mkdirDurably, mkdirs, removeTree, renameDurably, syncFileSystem, temporaryPath } from "../base/fsync.js";
import { resourceError } from "./resources.js";
import type { ReceivedPackage } from "./uploads.js";
import { invalidPackage, readContent, readZip, type ZipEntry } from "./zip.js";

/** Entries written at the same time; zlib's pool has four threads. */
const WRITERS = 4;
const DIRECTORY_MODE = 0o755;
const FILE_MODE = 0o644;
const EXECUTABLE_MODE = 0o755;
const LINK_TARGET_BYTES_MAX = 1024;

/**
 * From how many entries on they are flushed with all that the file system has to write. One by one, files cost half a millisecond each: 10,000 small
 * ones 5 to 11 s, against 0.2 s. A few are not made to wait for what others write.
 */
const FLUSHED_TOGETHER = 200;

/** Unpacked code that is not at its final place yet. */
export interface StagedCode {
  readonly dir: string;
  /** Paths of its files, relative. */
  readonly files: readonly string[];
  /** Moves it to its final place. Durable when it resolves. */
  publish(): Promise<void>;
  /** Removes it; what was published stays. */
  discard(): Promise<void>;
}

/**
 * Unpacks `zip` beside `finalDir`; nothing, where the same package has been unpacked there: that directory is whole, because only whole ones get that name.
 * CODE_INVALID with a reason; RESOURCE_EXHAUSTED when the disk is full.
 */
export async function stageCode(zip: ReceivedPackage, finalDir: string): Promise<StagedCode> {
  const entries = await readZip(zip);
  const files = entries.filter((entry) => entry.kind !== "directory").map((entry) => entry.path);
  const isThere = await exists(finalDir);
  const dir = isThere ? finalDir : temporaryPath(finalDir);
  if (!isThere) await unpack(zip, entries, dir);
  faultPoint("deploy-code-unpacked");
  return {
    dir,
    files,
    async publish() {
      if (!isThere) await renameDurably(dir, finalDir);
      faultPoint("deploy-code-renamed");
    },
    async discard() {
      if (!isThere) await removeTree(dir);
    },
  };
}

async function unpack(zip: ReceivedPackage, entries: readonly ZipEntry[], dir: string): Promise<void> {
  try {
    await mkdirDurably(dirname(dir));
    await mkdir(dir);
    await writeEntries(zip, entries, dir);
    await chmod(dir, DIRECTORY_MODE);
    await (entries.length < FLUSHED_TOGETHER ? fsyncTree(dir) : syncFileSystem(dir));
  } catch (error) {
    await removeTree(dir);
    throw resourceError(error, "The code package could not be unpacked");
  }
}

async function writeEntries(zip: ReceivedPackage, entries: readonly ZipEntry[], dir: string): Promise<void> {
  // The server's umask may hide what functions must read.
  const isMasked = ((await stat(dir)).mode & DIRECTORY_MODE) !== DIRECTORY_MODE;
  const directories = new Set<string>();
  for (const { path, kind } of entries) {
    let at = kind === "directory" ? path : dirname(path);
    for (; at !== "." && !directories.has(at); at = dirname(at)) directories.add(at);
  }
  for (const path of directories) await mkdirs(join(dir, path), DIRECTORY_MODE);

  const files = entries.filter((entry) => entry.kind === "file");
  let next = 0;
  const writer = async (): Promise<void> => {
    for (let entry = files[next++]; entry !== undefined; entry = files[next++]) {
      const mode = entry.executable ? EXECUTABLE_MODE : FILE_MODE;
      const file = await open(join(dir, entry.path), "wx", mode);
      try {
        for await (const piece of readContent(zip, entry)) await file.writeFile(piece);
        if (isMasked) await file.chmod(mode);
      } finally {
        await file.close();
      }
    }
  };
  /** What the others have begun they write, and nothing more. */
  const failed = (error: unknown): never => {
    next = files.length;
    throw error;
  };
  const results = await Promise.allSettled(Array.from({ length: WRITERS }, () => writer().catch(failed)));
  for (const result of results) if (result.status === "rejected") throw result.reason;

  if (isMasked) for (const path of directories) await chmod(join(dir, path), DIRECTORY_MODE);

  // Links last: no write may pass through one.
  for (const entry of entries) if (entry.kind === "link") await symlink(await linkTarget(zip, entry), join(dir, entry.path));
}

/**
 * The target of a link that stays inside. `..` is accepted only in front: the link's own directory is a real one, so leading
 * steps up can be counted, while after another link `..` would start from wherever that one points.
 */
async function linkTarget(zip: ReceivedPackage, entry: ZipEntry): Promise<string> {
  const outside = (target: string): Error =>
    invalidPackage(`"${entry.path}" is a symbolic link to "${target}", which may lie outside the package`, {
      fix: "Pack what it points to, or a relative link inside the package",
    });
  if (entry.unpackedBytes > LINK_TARGET_BYTES_MAX) throw outside("(a very long path)");
  const pieces: Uint8Array[] = [];
  for await (const piece of readContent(zip, entry)) pieces.push(piece);
  const target = Buffer.concat(pieces).toString("utf8");
  const parts = target.split("/").filter((part) => part !== "" && part !== ".");
  const upCount = parts.findIndex((part) => part !== "..");
  const climbs = upCount === -1 ? parts.length : upCount;
  const depth = posix.normalize(entry.path).split("/").length - 1;
  if (target === "" || target.startsWith("/") || target.includes("\0") || climbs > depth || parts.slice(climbs).includes("..")) {
    throw outside(target);
  }
  return target;
}

/**
 * Makes code readable by everyone again, where a copy of the data directory was made under a umask that took that away. Looks at the directory alone
 * where nothing is amiss. False then, and where there is none.
 */
export async function mendModes(dir: string): Promise<boolean> {
  const mode = statSync(dir, { throwIfNoEntry: false })?.mode;
  if (mode === undefined || (mode & DIRECTORY_MODE) === DIRECTORY_MODE) return false;
  const files = await readdir(dir, { recursive: true, withFileTypes: true });
  for (const entry of files) {
    const path = join(entry.parentPath, entry.name);
    if (entry.isDirectory()) await chmod(path, DIRECTORY_MODE);
    else if (entry.isFile()) await chmod(path, ((await stat(path)).mode & 0o100) === 0 ? FILE_MODE : EXECUTABLE_MODE);
  }
  // Last: it is what is looked at.
  await chmod(dir, DIRECTORY_MODE);
  return true;
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch {
    return false;
  }
}
