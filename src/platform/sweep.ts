/**
 * What a crash leaves behind: temporary directories, code and images that were complete but never recorded, and the files of
 * functions whose removal was recorded but not finished. All of it is what the database does not name.
 *
 * So a directory without a database would lose everything in it. What is there must then look as if a thaw wrote it: a folder of
 * somebody's project may well have `functions`, `images` and `logs` of its own.
 */
import { existsSync } from "node:fs";
import { readdir, rmdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { ThawError } from "../base/errors.js";
import { removeTree, TEMPORARY_PREFIX } from "../base/fsync.js";
import { knownIdentity, restored } from "./identity.js";
import { DATABASE_FILE } from "./store.js";

/** Directories of a platform's data. */
export interface DataLayout {
  readonly root: string;
  /** `<name>/<sha256 of the package>/`, and files of packages that are being received, which have no name. */
  readonly functions: string;
  /** `<name>.<random>/` */
  readonly images: string;
  /** `<name>.log`, `<name>.log.1` */
  readonly logs: string;
}

/** Where everything lies in a data directory. */
export function layoutOf(dataDir: string): DataLayout {
  return { root: dataDir, functions: join(dataDir, "functions"), images: join(dataDir, "images"), logs: join(dataDir, "logs") };
}

/** What belongs to somebody. */
export interface Owned {
  readonly code: readonly { readonly functionName: string; readonly codeHex: string }[];
  /** Names inside the images directory. */
  readonly images: ReadonlySet<string>;
}

/**
 * Looks at a directory that is about to be used, and changes nothing. INVALID_ARGUMENT when it has no database, and something that
 * {@link sweep} would remove and no thaw wrote. DATABASE_FAILED when functions are there, but their database is not, or is empty: the file was cut short.
 */
export async function refuseOthersFiles(layout: DataLayout): Promise<void> {
  const database = join(layout.root, DATABASE_FILE);
  const size = await stat(database).then(
    (found) => found.size,
    () => undefined,
  );
  if (size !== undefined && size > 0) return;
  const found = await foreignPath(layout);
  if (found !== undefined) {
    throw new ThawError("INVALID_ARGUMENT", {
      what: `The data directory ${layout.root} cannot be used`,
      why: `it has no database of thaw, but ${found}, which thaw did not write and would remove`,
      fix: "Give the server a directory of its own with --data",
    });
  }
  const known = await knownIdentity(layout.root);
  if ((size === 0 || known !== undefined) && (await hasFunctions(layout))) {
    throw new ThawError("DATABASE_FAILED", {
      what: `The database ${database} could not be opened`,
      why: `it is ${size === 0 ? "empty" : "not there"}, though functions are`,
      fix: restored(layout.root),
    });
  }
}

/** Whether code lies there, and none that is owned. */
export async function isStrange(layout: DataLayout, { code }: Owned): Promise<boolean> {
  const known = code.some(({ functionName, codeHex }) => existsSync(join(layout.functions, functionName, codeHex)));
  return !known && (await hasFunctions(layout));
}

async function hasFunctions({ functions }: DataLayout): Promise<boolean> {
  return (await namesIn(functions)).some((name) => !IS_TEMPORARY.test(name));
}

const TEMPORARY = TEMPORARY_PREFIX.replaceAll(".", "\\.");
const IS_TEMPORARY = new RegExp(`^${TEMPORARY}`);
const NAME = "[a-zA-Z0-9_-]{1,64}";
const FUNCTION = new RegExp(`^${NAME}$`);
const CODE = new RegExp(`^(?:${TEMPORARY}.*|[0-9a-f]{64})$`);
const IMAGE = new RegExp(`^(?:${TEMPORARY}.*|${NAME}\\.[0-9a-f]{16})$`);
const LOG = new RegExp(`^(${NAME})\\.log(?:\\.1)?$`);

/** Something that no thaw would have written; a log belongs to a function that has code. */
async function foreignPath({ functions, images, logs }: DataLayout): Promise<string | undefined> {
  const owners = (await namesIn(functions)).filter((name) => !IS_TEMPORARY.test(name));
  for (const owner of owners) {
    if (!FUNCTION.test(owner)) return join(functions, owner);
    const child = (await namesIn(join(functions, owner))).find((name) => !CODE.test(name));
    if (child !== undefined) return join(functions, owner, child);
  }
  const image = (await namesIn(images)).find((name) => !IMAGE.test(name));
  if (image !== undefined) return join(images, image);
  const log = (await namesIn(logs)).find((name) => !owners.includes(LOG.exec(name)?.[1] ?? ""));
  return log === undefined ? undefined : join(logs, log);
}

/** What is in a directory; of a file, its own name, which is empty here and fits no pattern. */
async function namesIn(path: string): Promise<string[]> {
  try {
    return await readdir(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") return [];
    if (code === "ENOTDIR") return [""];
    throw error;
  }
}

/** Removes everything else. Returns the paths removed, relative to the data directory. */
export async function sweep(layout: DataLayout, owned: Owned): Promise<string[]> {
  const removed: string[] = [];
  const remove = async (dir: string, name: string): Promise<void> => {
    await removeTree(join(dir, name));
    removed.push(join(dir, name).slice(layout.root.length + 1));
  };
  const kept = new Map<string, Set<string>>();
  for (const { functionName, codeHex } of owned.code) kept.set(functionName, (kept.get(functionName) ?? new Set()).add(codeHex));
  for (const name of await readdir(layout.functions)) {
    const own = kept.get(name);
    if (own === undefined) {
      await remove(layout.functions, name);
      continue;
    }
    const dir = join(layout.functions, name);
    for (const child of await readdir(dir)) if (!own.has(child)) await remove(dir, child);
  }
  for (const name of await readdir(layout.images)) if (!owned.images.has(name)) await remove(layout.images, name);
  for (const name of await readdir(layout.logs)) {
    if (!kept.has(name.replace(/\.log(\.1)?$/, ""))) await remove(layout.logs, name);
  }
  return removed;
}

/** Removes a directory if nothing is in it. */
export async function removeIfEmpty(path: string): Promise<void> {
  try {
    await rmdir(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== "ENOTEMPTY" && code !== "ENOENT") throw error;
  }
}
