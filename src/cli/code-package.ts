/**
 * Turns what `thaw deploy` was pointed at into a zip. The same files give the same bytes (sorted names, one fixed time), so that an
 * unchanged function is recognised by its hash. Files are looked at first, and read and packed while the zip is sent: it is never whole in memory.
 *
 * Symbolic links are replaced by what they point to, as long as that is inside the folder. One that leads outside is an
 * error: following it would upload files that nobody named, leaving it out would deploy a function with a hole.
 */
import { createReadStream, type Dirent, type Stats, statSync } from "node:fs";
import { readdir, realpath, stat } from "node:fs/promises";
import { basename, join, relative, resolve, sep } from "node:path";
import { errorText, ThawError } from "../base/errors.js";
import { formatBytes } from "../base/units.js";
import { type Measure, mostOf } from "../platform/largest.js";
import { LIMITS } from "../platform/types.js";
import { THAW_JSON } from "./thaw-json.js";
import { type FileToPack, zipFiles } from "./zip-writer.js";

const SKIPPED = new Set([".git", ".DS_Store"]);

/** A package ready to be sent. */
export interface CodePackage {
  /** Of its files; of a finished zip, its own. */
  readonly bytes: number;
  /** The zip, in pieces. `onRead` is told of each piece of what it has {@link bytes} of. CODE_INVALID when a file cannot be read. */
  zip(onRead?: (bytes: number) => void): AsyncIterable<Buffer>;
  /** File names inside the package; empty when a finished zip was given. */
  readonly names: ReadonlySet<string>;
}

/** What a package may have. */
export interface PackageLimits {
  readonly unpackedBytes: number;
  readonly packedBytes: number;
  readonly packageEntries: number;
}

/** Packs a folder without the files `left`, or takes a finished `.zip`. CODE_INVALID says what is wrong with it. */
export async function packCode(
  path: string,
  left: readonly (string | undefined)[] = [],
  limits: PackageLimits = LIMITS,
): Promise<CodePackage> {
  const found = await stat(path).catch((error: unknown) => {
    throw new ThawError("CODE_INVALID", {
      what: `${path} cannot be deployed`,
      why: (error as NodeJS.ErrnoException).code === "ENOENT" ? "It does not exist" : errorText(error),
      fix: "Give the folder that holds the function's code",
      cause: error,
    });
  });
  if (found.isDirectory()) return packFolder(path, new Set([THAW_JSON, ...left]), limits);
  if (found.isFile() && path.endsWith(".zip")) return finishedZip(path, found.size, limits);
  throw new ThawError("CODE_INVALID", {
    what: `${path} cannot be deployed`,
    why: "It is neither a folder nor a .zip file",
    fix: `Give the folder that holds ${basename(path)}`,
  });
}

function finishedZip(path: string, bytes: number, { packedBytes }: PackageLimits): CodePackage {
  if (bytes > packedBytes) throw tooLarge(path, `it has ${formatBytes(bytes)}, the limit is ${formatBytes(packedBytes)}`);
  async function* zip(onRead?: (bytes: number) => void): AsyncGenerator<Buffer> {
    try {
      for await (const piece of createReadStream(path) as AsyncIterable<Buffer>) {
        onRead?.(piece.length);
        yield piece;
      }
    } catch (error) {
      unreadable(path, path, error);
    }
  }
  return { bytes, zip, names: new Set() };
}

async function packFolder(folder: string, left: ReadonlySet<string | undefined>, limits: PackageLimits): Promise<CodePackage> {
  const root = await realpath(folder);
  const files: FileToPack[] = [];
  let bytes = 0;
  /** Without the one that is packed. */
  let folderCount = -1;

  /** Counts folders too: each is walked by every way that links make to it, and twenty with two ways to the next are a million. */
  const count = (): number => files.length + folderCount;
  /** Of up to twice as many it can be told what they are. */
  const isEndless = (): boolean => count() > 2 * limits.packageEntries;

  /** Adds what `directory` holds; `ancestors` are real paths above it, by which a link to an ancestor is recognised. */
  async function walk(directory: string, ancestors: readonly string[]): Promise<void> {
    folderCount++;
    const entries = await readdir(directory, { withFileTypes: true }).catch((error: unknown) =>
      unreadable(root, relative(root, directory) || ".", error),
    );
    const above = [...ancestors, await realpath(directory)];
    entries.sort((a, b) => (a.name < b.name ? -1 : 1));
    for (const entry of entries) {
      if (isEndless()) return;
      const path = join(directory, entry.name);
      const inside = relative(root, path).split(sep).join("/");
      if (!SKIPPED.has(entry.name) && !left.has(inside)) await add(path, inside, entry, above);
    }
  }

  /** At once: there is nothing else to do, and a promise for each of 60,000 files takes seconds. */
  function look(path: string, inside: string): Stats {
    try {
      return statSync(path);
    } catch (error) {
      return unreadable(root, inside, error);
    }
  }

  async function add(path: string, inside: string, entry: Dirent, above: readonly string[]): Promise<void> {
    const target = entry.isSymbolicLink() ? await followed(root, path, inside) : path;
    const info = look(target, inside);
    if (info.isDirectory()) {
      if (!entry.isSymbolicLink() || !above.includes(await realpath(target))) await walk(path, above);
    } else if (info.isFile()) {
      bytes += info.size;
      files.push({ path: inside, from: target, bytes: info.size, isExecutable: (info.mode & 0o111) !== 0 });
    }
  }

  await walk(root, []);
  const most = (measure: Measure): Promise<string> => mostOf(files, measure);
  if (count() > limits.packageEntries) {
    const many = isEndless() ? `more than ${2 * limits.packageEntries}` : count();
    const why = `it has ${many} files and folders, those that links lead to included, the limit is ${limits.packageEntries}`;
    throw tooLarge(folder, why + (await most("files")));
  }
  if (bytes > limits.unpackedBytes) {
    const why = `its files have ${formatBytes(bytes)}, the limit is ${formatBytes(limits.unpackedBytes)}`;
    throw tooLarge(folder, why + (await most("bytes")));
  }
  if (files.length === 0) throw new ThawError("CODE_INVALID", { what: `${folder} cannot be deployed`, why: "It holds no files" });
  return {
    bytes,
    zip: (onRead = () => undefined) => zipFiles(files, onRead, ({ path }, error) => unreadable(root, path, error)),
    names: new Set(files.map(({ path }) => path)),
  };
}

/** A file without its permission, or whose name is not UTF-8: it cannot be asked for by that. */
function unreadable(root: string, inside: string, error: unknown): never {
  throw new ThawError("CODE_INVALID", {
    what: `${root} cannot be deployed`,
    why: inside.includes("\ufffd") ? `The name of ${inside} is not UTF-8` : `${inside} cannot be read: ${errorText(error)}`,
    fix: "Rename it, let it be read, or take it out of the folder",
    cause: error,
  });
}

/** Where a link leads, if that is inside the folder. */
async function followed(root: string, path: string, inside: string): Promise<string> {
  const target = await realpath(path).catch(() => undefined);
  if (target !== undefined && (target === root || target.startsWith(root + sep))) return target;
  const leads = target === undefined ? "to nothing" : `to ${target}, outside the folder`;
  throw new ThawError("CODE_INVALID", {
    what: `${root} cannot be deployed`,
    why: `${inside} is a symbolic link that leads ${leads}`,
    fix: target === undefined ? "Remove the link, or bring back what it led to" : "Replace the link by the files themselves",
  });
}

function tooLarge(path: string, why: string): ThawError {
  return new ThawError("CODE_INVALID", {
    what: `${path} is too large to be deployed`,
    why,
    fix: "Leave out what the function does not need at run time",
  });
}

/** Extensions in the order in which the runtimes try them. */
const HANDLER_EXTENSIONS = ["", ".js", ".mjs", ".cjs", ".py"];

/** Refuses a handler whose file is not in the package, before anything is sent. */
export function checkHandler(code: CodePackage, handler: string, folder: string): void {
  if (code.names.size === 0) return;
  // As Node does, which looks for it from the package's root.
  const path = handler.replace(/^\.\//, "");
  const slash = path.lastIndexOf("/");
  const dot = path.indexOf(".", slash + 1);
  const lastDot = path.lastIndexOf(".");
  // Node cuts at the first dot of the last part, Python at the last dot and takes "." and "/" alike.
  const stems = dot <= slash + 1 ? [] : [path.slice(0, dot), path.slice(0, lastDot).replaceAll(".", "/")];
  if (stems.length === 0) {
    throw new ThawError("CODE_INVALID", {
      what: `Handler ${JSON.stringify(handler)} cannot be read`,
      why: "It must be FILE.EXPORT, such as index.handler for the export `handler` of index.js",
    });
  }
  const wanted = stems.flatMap((stem) => [...HANDLER_EXTENSIONS.map((extension) => stem + extension), `${stem}/__init__.py`]);
  if (wanted.some((name) => code.names.has(name))) return;
  throw new ThawError("CODE_INVALID", {
    what: `Handler ${JSON.stringify(handler)} is not in ${resolve(folder)}`,
    why: `There is no ${stems[0]}.js, .mjs, .cjs or .py`,
    fix: "Name the file that exports the handler: --handler FILE.EXPORT",
  });
}
