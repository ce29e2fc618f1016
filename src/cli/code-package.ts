/**
 * Turns what `thaw deploy` was pointed at into a zip. The same files give the same bytes on every machine (sorted
 * names, one fixed time), so that an unchanged function is recognised by its hash.
 *
 * Symbolic links are replaced by what they point to, as long as that is inside the folder. One that leads outside is an
 * error: following it would upload files that nobody named, leaving it out would deploy a function with a hole.
 */
import { lstat, readdir, readFile, realpath, stat } from "node:fs/promises";
import { basename, join, relative, resolve, sep } from "node:path";
import { type AsyncZippable, zip } from "fflate";
import { errorText, ThawError } from "../base/errors.js";
import { formatBytes } from "../base/units.js";
import { LIMITS } from "../platform/types.js";
import { THAW_JSON } from "./thaw-json.js";

const SKIPPED = new Set([".git", ".DS_Store"]);
// The oldest time a zip can hold. Local, because that is how zip stores it and fflate reads it.
const FIXED_TIME = new Date(1980, 0, 1);

/** A package ready to be sent. */
export interface CodePackage {
  readonly zip: Buffer;
  readonly fileCount: number;
  /** File names inside the package; empty when a finished zip was given. */
  readonly names: ReadonlySet<string>;
}

/** Packs a folder without the files `left`, or takes a finished `.zip`. CODE_INVALID says what is wrong with it. */
export async function packCode(path: string, left: readonly (string | undefined)[] = []): Promise<CodePackage> {
  const found = await stat(path).catch((error: unknown) => {
    throw new ThawError("CODE_INVALID", {
      what: `${path} cannot be deployed`,
      why: (error as NodeJS.ErrnoException).code === "ENOENT" ? "It does not exist" : errorText(error),
      fix: "Give the folder that holds the function's code",
      cause: error,
    });
  });
  if (found.isDirectory()) return packFolder(path, new Set([THAW_JSON, ...left]));
  if (found.isFile() && path.endsWith(".zip")) {
    checkZipSize(path, found.size);
    return { zip: await readFile(path).catch((error: unknown) => unreadable(path, path, error)), fileCount: 0, names: new Set() };
  }
  throw new ThawError("CODE_INVALID", {
    what: `${path} cannot be deployed`,
    why: "It is neither a folder nor a .zip file",
    fix: `Give the folder that holds ${basename(path)}`,
  });
}

async function packFolder(folder: string, left: ReadonlySet<string | undefined>): Promise<CodePackage> {
  const root = await realpath(folder);
  const entries: AsyncZippable = {};
  let bytes = 0;
  let fileCount = 0;
  let folderCount = 0;

  /** Counts folders too: each is walked by every way that links make to it, and twenty with two ways to the next are a million. */
  function checkCount(): void {
    if (fileCount + folderCount > LIMITS.packageEntries)
      throw tooLarge(folder, `it has more than ${LIMITS.packageEntries} files and folders, those that links lead to included`);
  }

  /** Adds what `directory` holds; `ancestors` are real paths above it, by which a link to an ancestor is recognised. */
  async function walk(directory: string, ancestors: readonly string[]): Promise<void> {
    folderCount++;
    checkCount();
    const names = await readdir(directory).catch((error: unknown) => unreadable(root, relative(root, directory) || ".", error));
    const above = [...ancestors, await realpath(directory)];
    for (const name of names.sort()) {
      const path = join(directory, name);
      const inside = relative(root, path).split(sep).join("/");
      if (SKIPPED.has(name) || left.has(inside)) continue;
      const link = await lstat(path).catch((error: unknown) => unreadable(root, inside, error));
      const target = link.isSymbolicLink() ? await followed(root, path, inside) : path;
      const info = await stat(target).catch((error: unknown) => unreadable(root, inside, error));
      if (info.isDirectory()) {
        const real = await realpath(target);
        if (!above.includes(real)) await walk(path, above);
      } else if (info.isFile()) {
        // The library takes it for the prototype of what it packs, and would leave the file out without a word.
        if (inside === "__proto__")
          throw new ThawError("CODE_INVALID", {
            what: `${root} cannot be deployed`,
            why: '"__proto__" cannot be the name of a file',
            fix: "Rename it",
          });
        bytes += info.size;
        if (bytes > LIMITS.unpackedBytes)
          throw tooLarge(folder, `its files are larger than ${formatBytes(LIMITS.unpackedBytes)}`);
        fileCount++;
        checkCount();
        // Upper half of the attributes: the Unix mode. Read permission for all: the function is not the owner.
        const mode = 0o100444 | (info.mode & 0o111 ? 0o111 : 0);
        const data = await readFile(target).catch((error: unknown) => unreadable(root, inside, error));
        entries[inside] = [new Uint8Array(data), { attrs: mode << 16, os: 3 }];
      }
    }
  }

  await walk(root, []);
  if (fileCount === 0) {
    throw new ThawError("CODE_INVALID", { what: `${folder} cannot be deployed`, why: "It holds no files" });
  }
  const packed = await new Promise<Uint8Array>((done, failed) => {
    // Level 3: the server is near, and the package is unpacked once.
    zip(entries, { level: 3, mtime: FIXED_TIME }, (error, data) => (error ? failed(error) : done(data)));
  });
  checkZipSize(folder, packed.byteLength);
  return {
    zip: Buffer.from(packed.buffer, packed.byteOffset, packed.byteLength),
    fileCount,
    names: new Set(Object.keys(entries)),
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

function checkZipSize(path: string, bytes: number): void {
  if (bytes > LIMITS.packedBytes)
    throw tooLarge(path, `packed it has ${formatBytes(bytes)}, the limit is ${formatBytes(LIMITS.packedBytes)}`);
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
  const slash = handler.lastIndexOf("/");
  const dot = handler.indexOf(".", slash + 1);
  const lastDot = handler.lastIndexOf(".");
  // Node cuts at the first dot of the last part, Python at the last dot and takes "." and "/" alike.
  const stems = dot <= slash + 1 ? [] : [handler.slice(0, dot), handler.slice(0, lastDot).replaceAll(".", "/")];
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
