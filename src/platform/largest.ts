/** What makes a package large, so that who is told that it is too large knows where to begin. */
import { nextTurn } from "../base/turns.js";
import { formatBytes } from "../base/units.js";

/** A file of a package. */
export interface Sized {
  /** Relative, `/`-separated. */
  readonly path: string;
  readonly bytes: number;
}

/** How many are named. */
const NAMED = 4;
/** Files between two turns of the event loop. */
const SLICE = 250;

/** Which of the limits was passed. */
export type Measure = "bytes" | "files";

interface Part {
  readonly path: string;
  size: number;
  readonly parts: Map<string, Part>;
  readonly isFolder: boolean;
  /** Whether it is a module of its own, which is left out whole or not at all. */
  isModule: boolean;
}

/**
 * The folders, and files beside them, that have most of it, as the end of a sentence: `. Most is in node_modules/next (120 MiB),
 * node_modules/typescript (61 MiB)`. A folder that has more than half of everything says little, and is told by what is in it, unless
 * that is a module or mostly files. Empty where there are no folders.
 */
export async function mostOf(files: readonly Sized[], measure: Measure): Promise<string> {
  const root = part("", true);
  for (const [index, { path, bytes }] of files.entries()) {
    if (index % SLICE === 0) await nextTurn();
    const size = measure === "bytes" ? bytes : 1;
    root.size += size;
    let at = root;
    for (let slash = path.indexOf("/"); slash !== -1; slash = path.indexOf("/", slash + 1))
      at = add(at, path.slice(0, slash), size, true);
    if (at !== root && /(^|\/)(package\.json|__init__\.py)$/.test(path)) at.isModule = true;
    if (measure === "bytes") add(at, path, size, false);
  }
  let parts = [...root.parts.values()];
  for (;;) {
    parts.sort((a, b) => b.size - a.size);
    const [first] = parts;
    if (first === undefined || first.isModule || first.size <= root.size / 2 || inFolders(first) <= first.size / 2) break;
    parts = [...parts.slice(1), ...first.parts.values()];
  }
  const text = (size: number): string => (measure === "bytes" ? formatBytes(size) : `${size} files`);
  const named = parts.slice(0, NAMED).map(({ path, size }) => `${path} (${text(size)})`);
  return named.length === 0 ? "" : `. Most is in ${named.join(", ")}`;
}

const part = (path: string, isFolder: boolean): Part => ({ path, size: 0, parts: new Map(), isFolder, isModule: false });

function add(folder: Part, path: string, size: number, isFolder: boolean): Part {
  const found = folder.parts.get(path) ?? part(path, isFolder);
  found.size += size;
  folder.parts.set(path, found);
  return found;
}

/** How much of a folder lies in folders of it. */
function inFolders({ parts }: Part): number {
  return [...parts.values()].reduce((sum, { size, isFolder }) => sum + (isFolder ? size : 0), 0);
}
