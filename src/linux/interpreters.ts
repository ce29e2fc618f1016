/**
 * Interpreters on this machine, by runtime id (`nodejs20.x`, `python3.11`). What the PATH names may be a shim: each
 * candidate is run and asked what it really is, because a sandbox must bind the real binary, its library directories and
 * the shared libraries it maps.
 */
import { execFile } from "node:child_process";
import { accessSync, constants, readdirSync, realpathSync, statSync } from "node:fs";
import { basename, delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";
import { ThawError } from "../base/errors.js";

/** One interpreter and what of the host's files it needs. */
export interface Interpreter {
  /** `nodejs20.x`, `python3.11`. */
  readonly id: string;
  readonly language: "node" | "python";
  /** The real binary, no link and no shim. */
  readonly path: string;
  readonly version: string;
  /** Directories with its library: bound whole. */
  readonly prefixes: readonly string[];
  /** Files that it maps when it starts, beside the binary. */
  readonly libraries: readonly string[];
}

/** Directories that each sandbox has of its own: what the host has there cannot be seen in it. */
const OWN_DIRS = ["/tmp", "/dev", "/proc", "/var/task", "/var/runtime"] as const;

/** The directory, if any, for which sandboxes cannot see what lies at `path`. */
export function hiddenBelow(path: string): string | undefined {
  return OWN_DIRS.find((dir) => path.startsWith(`${dir}/`));
}

const TIMEOUT_MS = 15_000;
const run = promisify(execFile);

const ASK_NODE = `
const fs = require("fs");
process.stdout.write(JSON.stringify({ path: process.execPath, version: process.versions.node, prefixes: [], maps: fs.readFileSync("/proc/self/maps", "utf8") }));
`;

/* lib-dynload lies in the library directory; site-packages of Debian lie in dist-packages under /usr/lib/python3. */
const ASK_PYTHON = `
import json, os, sys, sysconfig
base = {"installed_base": sys.base_prefix, "base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix, "platbase": sys.base_exec_prefix}
dirs = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
if sys.base_prefix not in ("/usr", "/usr/local", "/"): dirs = [sys.base_prefix]
dirs += [path for path in sys.path if path and os.path.isdir(path)]
json.dump({"path": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable), "version": "%d.%d.%d" % sys.version_info[:3],
  "prefixes": dirs, "maps": open("/proc/self/maps").read()}, sys.stdout)
`;

interface Answer {
  readonly path: string;
  readonly version: string;
  readonly prefixes: readonly string[];
  readonly maps: string;
}

/** All interpreters; of several with one id, the first on the PATH that sandboxes can see. `node` that runs this process comes first. */
export async function findInterpreters(searchPath = process.env["PATH"] ?? ""): Promise<Interpreter[]> {
  const asked = await Promise.all([
    ...unique([process.execPath, ...candidates(searchPath, /^node(js)?$/)]).map((path) => ask("node", path)),
    ...unique(candidates(searchPath, /^python3(\.\d+)?$/)).map((path) => ask("python", path)),
  ]);
  const found = new Map<string, Interpreter>();
  for (const interpreter of asked) {
    if (interpreter === undefined) continue;
    const before = found.get(interpreter.id);
    if (before === undefined || (hiddenBelow(before.path) !== undefined && hiddenBelow(interpreter.path) === undefined))
      found.set(interpreter.id, interpreter);
  }
  return [...found.values()];
}

/**
 * Exactly these, and no others; paths are asked what they are. A measurement that must not share the machine's interpreters brings its own, and a server
 * those that its doctor found. RUNTIME_MISSING when a path leads to none.
 */
export async function interpretersAt(named: readonly (Interpreter | string)[]): Promise<Interpreter[]> {
  return Promise.all(
    named.map(async (path) => {
      if (typeof path !== "string") return path;
      const found = await ask(basename(path).startsWith("python") ? "python" : "node", path);
      if (found !== undefined) return found;
      throw new ThawError("RUNTIME_MISSING", {
        what: `${path} is no interpreter that can be used`,
        why: "it does not run, or does not say what it is",
        fix: "name the binary of a Node, or one of a Python whose name begins with python",
      });
    }),
  );
}

/** Executable files on the path by name, in its order; links to the same file once. */
function candidates(searchPath: string, name: RegExp): string[] {
  const paths: string[] = [];
  for (const dir of searchPath.split(delimiter)) {
    if (dir === "") continue;
    let names: string[];
    try {
      names = readdirSync(dir).filter((entry) => name.test(entry));
    } catch {
      continue;
    }
    paths.push(
      ...names
        .sort()
        .map((entry) => join(dir, entry))
        .filter(isExecutable),
    );
  }
  return paths;
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

function unique(paths: readonly string[]): string[] {
  const seen = new Set<string>();
  return paths.filter((path) => {
    const real = realpathSync(path);
    return seen.has(real) ? false : seen.add(real) !== undefined;
  });
}

/** Undefined when the candidate does not run or is too old to have an id: it is then no interpreter for us. */
async function ask(language: Interpreter["language"], path: string): Promise<Interpreter | undefined> {
  try {
    const args = language === "node" ? ["-e", ASK_NODE] : ["-s", "-c", ASK_PYTHON];
    // Neither the caller's options nor a virtual environment shall colour the answer.
    const env = { PATH: process.env["PATH"] ?? "", HOME: process.env["HOME"] ?? "/" };
    const { stdout } = await run(path, args, { timeout: TIMEOUT_MS, env, maxBuffer: 8 << 20 });
    return describe(language, JSON.parse(stdout) as Answer);
  } catch {
    return undefined;
  }
}

function describe(language: Interpreter["language"], answer: Answer): Interpreter {
  const [major = "", minor = ""] = answer.version.split(".");
  const path = realpathSync(answer.path);
  const prefixes = language === "node" ? nodePrefixes(answer.maps) : answer.prefixes;
  return {
    id: language === "node" ? `nodejs${major}.x` : `python${major}.${minor}`,
    language,
    path,
    version: answer.version,
    prefixes: outermost(prefixes.map((prefix) => realpathSync(prefix))),
    libraries: mappedFiles(answer.maps).filter((file) => file !== path && file.includes(".so")),
  };
}

/** A node that is linked against libnode keeps part of its own JavaScript in files (Debian's package). */
function nodePrefixes(maps: string): string[] {
  return /\/libnode\.so/.test(maps) && isDirectory("/usr/share/nodejs") ? ["/usr/share/nodejs"] : [];
}

function isDirectory(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}

/** Paths of the files in the text of /proc/PID/maps. */
export function mappedFiles(maps: string): string[] {
  const files = new Set<string>();
  for (const line of maps.split("\n")) {
    const path = /^\S+ \S+ \S+ \S+ +\d+ +(\/.*)$/.exec(line)?.[1];
    if (path !== undefined && !path.endsWith(" (deleted)")) files.add(path);
  }
  return [...files];
}

/** Without those that lie in another. */
function outermost(dirs: readonly string[]): string[] {
  const kept: string[] = [];
  for (const dir of [...new Set(dirs)].sort()) {
    if (dirname(dir) !== dir && !kept.some((other) => dir.startsWith(`${other}/`))) kept.push(dir);
  }
  return kept;
}
