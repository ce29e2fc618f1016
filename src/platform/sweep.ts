/**
 * What a crash leaves behind: temporary directories, code and images that were complete but never recorded, and the files of
 * functions whose removal was recorded but not finished. All of it is what the database does not name.
 */
import { readdir, rm, rmdir } from "node:fs/promises";
import { join } from "node:path";

/** Directories of a platform's data. */
export interface DataLayout {
  readonly root: string;
  /** `<name>/<sha256 of the package>/` */
  readonly functions: string;
  /** `<name>.<random>/` */
  readonly images: string;
  /** `<name>.log`, `<name>.log.1` */
  readonly logs: string;
}

export function layoutOf(dataDir: string): DataLayout {
  return { root: dataDir, functions: join(dataDir, "functions"), images: join(dataDir, "images"), logs: join(dataDir, "logs") };
}

/** What belongs to somebody. */
export interface Owned {
  readonly code: readonly { readonly functionName: string; readonly codeHex: string }[];
  /** Names inside the images directory. */
  readonly images: ReadonlySet<string>;
}

/** Removes everything else. Returns the paths removed, relative to the data directory. */
export async function sweep(layout: DataLayout, owned: Owned): Promise<string[]> {
  const removed: string[] = [];
  const remove = async (dir: string, name: string): Promise<void> => {
    await rm(join(dir, name), { recursive: true, force: true });
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
