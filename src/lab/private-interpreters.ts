/**
 * Interpreters that nobody else runs. The server of a measurement is itself a Node, and a file that any process maps cannot be
 * dropped from the page cache: a cold start needs a copy of its own.
 *
 * Private is: the binary, and for Python its library directory, shared library and extension modules. Shared with the machine, and so always
 * in the cache, are the C and C++ libraries that every process maps (libc, libm, libstdc++, …).
 */
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { findInterpreters, type Interpreter } from "../linux/interpreters.js";
import type { Lab } from "./lab.js";
import type { Language } from "./workloads.js";

/** Outside /tmp, which every sandbox covers with one of its own. */
const PARENT = "/var/tmp/thaw-bench-";

/** Copies for one engine. */
export interface PrivateInterpreters {
  /** For EngineOptions. */
  readonly paths: readonly string[];
  /** The directory that holds everything private of a language. */
  readonly dirs: Readonly<Record<Language, string>>;
}

/** Parts of a Python installation that no function of ours imports; together they are most of it. */
const LEFT_OUT = /\/(site-packages|dist-packages|test|tests|idlelib|tkinter|lib2to3|ensurepip|config-[^/]*)$/;

/** Runs `use` with copies in a directory of their own, and removes it whatever happens. */
export async function withInterpreters<T>(
  lab: Lab,
  use: (interpreters: PrivateInterpreters, dir: string) => Promise<T>,
): Promise<T> {
  const dir = mkdtempSync(PARENT);
  const done = lab.cleanup.add("removing the private interpreters", () => rmSync(dir, { recursive: true, force: true }));
  try {
    lab.progress("copying interpreters");
    return await use(await copyInterpreters(dir), dir);
  } finally {
    rmSync(dir, { recursive: true, force: true });
    done();
  }
}

/** Copies node and python into `dir`. Throws when this machine lacks one. */
async function copyInterpreters(dir: string): Promise<PrivateInterpreters> {
  const found = await findInterpreters();
  const of = (language: Language): Interpreter => {
    const interpreter = found.find((each) => each.language === language);
    if (interpreter === undefined) throw new Error(`there is no ${language} on this machine to copy`);
    return interpreter;
  };
  const dirs = { node: join(dir, "node"), python: join(dir, "python") };
  return { paths: [copyNode(of("node"), dirs.node), copyPython(of("python"), dirs.python)], dirs };
}

function copyNode({ path }: Interpreter, dir: string): string {
  mkdirSync(dir, { recursive: true });
  cpSync(path, join(dir, "node"));
  return join(dir, "node");
}

/** Python finds its library beside itself: `bin/python3.11`, then `lib/python3.11` (getpath of CPython). */
function copyPython({ path, id }: Interpreter, dir: string): string {
  const prefix = dirname(dirname(path));
  const copy = join(dir, "bin", basename(path));
  mkdirSync(dirname(copy), { recursive: true });
  mkdirSync(join(dir, "lib"), { recursive: true });
  writeFileSync(copy, withOwnLibraries(readFileSync(path), prefix), { mode: 0o755 });
  const filter = (source: string): boolean => !LEFT_OUT.test(source);
  cpSync(join(prefix, "lib", id), join(dir, "lib", id), { recursive: true, filter });
  const shared = join(prefix, "lib", `lib${id}.so.1.0`);
  if (existsSync(shared)) cpSync(shared, join(dir, "lib", basename(shared)));
  return copy;
}

/**
 * An interpreter that was built into a prefix looks for its shared library there, by an absolute RUNPATH. The same bytes, with the path
 * relative to the binary instead; a binary without such a path stays as it is.
 */
export function withOwnLibraries(binary: Buffer, prefix: string): Buffer {
  const absolute = Buffer.from(`${prefix}/lib\0`);
  const relative = Buffer.from("$ORIGIN/../lib\0");
  const patched = Buffer.from(binary);
  for (let at = patched.indexOf(absolute); at !== -1; at = patched.indexOf(absolute, at + 1)) {
    // Only a whole string, not the end of a longer one.
    if (at > 0 && patched[at - 1] !== 0) continue;
    if (relative.length > absolute.length) throw new Error(`the prefix ${prefix} is too short to be replaced in the binary`);
    patched.fill(0, at, at + absolute.length);
    relative.copy(patched, at);
  }
  return patched;
}
