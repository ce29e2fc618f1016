/**
 * Root file systems: what of the host a function may see. A plan is a list of operations that the keeper runs once for
 * each runtime (docs/design/keeper.md); every sandbox of that runtime is a copy of the result. Everything is
 * read-only, and what is not named here does not exist inside.
 */
import { existsSync, lstatSync, readlinkSync, realpathSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import type { Interpreter } from "./interpreters.js";

/** One operation of a plan; paths are inside the new root, `source` is on the host. */
export type RootOperation =
  | { readonly kind: "dir"; readonly path: string; readonly mode: number }
  | { readonly kind: "bind"; readonly source: string; readonly target: string }
  | { readonly kind: "file"; readonly path: string; readonly mode: number; readonly content: string }
  /** A host file's bytes, kept in the root's memory: spares a mount. */
  | { readonly kind: "copy"; readonly source: string; readonly target: string; readonly mode: number }
  /** The same device node as the host's `source`. */
  | { readonly kind: "device"; readonly path: string; readonly source: string }
  | { readonly kind: "link"; readonly path: string; readonly target: string };

/** What a plan depends on beside the interpreter. */
export interface RootParts {
  /** The husk's binary on the host. */
  readonly huskPath: string;
  /** Directory of the runtimes' bootstraps, seen at /var/runtime. */
  readonly runtimeDir: string;
}

/** Ordinary programs that a function's child process may use. */
const USERLAND: readonly string[] = [
  "sh",
  "bash",
  "env",
  "cat",
  "ls",
  "echo",
  "sleep",
  "true",
  "false",
  "date",
  "uname",
  "mkdir",
  "rm",
  "cp",
  "mv",
  "head",
  "tail",
  "grep",
  "sed",
  "wc",
  "sort",
  "tr",
  "id",
];

const DEVICES = ["null", "zero", "full", "random", "urandom"] as const;

/** Where shared libraries lie on the distributions that we know; what exists is bound whole, for a function's own native modules. */
const LIBRARY_DIRS = ["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/lib64"] as const;

const DATA_DIRS = [
  "/etc/ssl/certs",
  "/usr/share/ca-certificates",
  "/etc/pki/tls/certs",
  "/etc/pki/ca-trust/extracted",
  "/usr/share/zoneinfo",
] as const;
const DATA_FILES = ["/etc/ssl/openssl.cnf", "/etc/ld.so.cache", "/etc/localtime"] as const;

const ETC: Readonly<Record<string, string>> = {
  "/etc/passwd":
    "root:x:0:0:root:/root:/bin/sh\nfunction:x:1000:1000:function:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
  "/etc/group": "root:x:0:\nfunction:x:1000:\nnogroup:x:65534:\n",
  "/etc/hosts": "127.0.0.1 localhost thaw\n::1 localhost\n",
  "/etc/hostname": "thaw\n",
  "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
  "/etc/resolv.conf": "",
};

/** The plan for one interpreter. Looks at the host to see what exists; opens nothing that a function names. */
export function planRoot(interpreter: Interpreter, parts: RootParts): RootOperation[] {
  const plan: RootOperation[] = [];
  const bound: string[] = [];
  const bind = (source: string, target = source): void => {
    if (!existsSync(source) || bound.some((path) => target === path || target.startsWith(`${path}/`))) return;
    plan.push({ kind: "bind", source: realpathSync(source), target });
    bound.push(target);
  };
  const copy = (source: string, target: string, mode: number): void => {
    if (existsSync(source)) plan.push({ kind: "copy", source: realpathSync(source), target, mode });
  };
  for (const path of [
    "/proc",
    "/tmp",
    "/var/task",
    "/opt",
    "/var/runtime",
    "/run/thaw",
    "/dev/shm",
    "/etc",
    "/usr/bin",
    "/usr/lib",
    "/root",
  ]) {
    plan.push({ kind: "dir", path, mode: 0o755 });
  }
  planTopLinks(plan);
  for (const dir of [...LIBRARY_DIRS, ...interpreter.prefixes]) if (existsSync(dir)) bind(realpathSync(dir));
  for (const file of [interpreter.path, ...interpreter.libraries]) bind(throughLinks(file));
  planInterpreterName(plan, bound, interpreter);
  for (const name of USERLAND) {
    const found = [`/usr/bin/${name}`, `/bin/${name}`].find((path) => existsSync(path));
    if (found !== undefined) copy(found, throughLinks(found), 0o755);
  }
  for (const path of DATA_DIRS) bind(path, path);
  for (const path of DATA_FILES) copy(path, path, 0o644);
  for (const [path, content] of Object.entries(ETC)) plan.push({ kind: "file", path, mode: 0o644, content });
  planDevices(plan);
  bind(parts.runtimeDir, "/var/runtime");
  // Where `import "thaw-snapshot"` looks from /var/task, from /opt, from anywhere.
  plan.push({ kind: "link", path: "/node_modules", target: "/var/runtime/node/packages" });
  bind(parts.huskPath, "/run/thaw/husk");
  return plan;
}

/** /bin, /lib, /lib64, /sbin are links into /usr on merged systems: the same here, else real directories. */
function planTopLinks(plan: RootOperation[]): void {
  for (const path of ["/bin", "/sbin", "/lib", "/lib64"]) {
    const info = lstatSync(path, { throwIfNoEntry: false });
    if (info === undefined) continue;
    if (info.isSymbolicLink()) plan.push({ kind: "link", path, target: readlinkSync(path) });
    else plan.push({ kind: "dir", path, mode: 0o755 });
  }
}

/** `path` with the links of its directory followed, not that of its last part: a library keeps the name that others ask for. */
function throughLinks(path: string): string {
  return existsSync(dirname(path)) ? join(realpathSync(dirname(path)), basename(path)) : path;
}

/** So that a child process of the function finds `node` or `python3` on its PATH. */
function planInterpreterName(plan: RootOperation[], bound: string[], interpreter: Interpreter): void {
  for (const name of interpreter.language === "node" ? ["node"] : ["python3", `python${interpreter.id.slice("python".length)}`]) {
    const path = `/usr/bin/${name}`;
    if (path !== interpreter.path && !bound.includes(path)) plan.push({ kind: "link", path, target: interpreter.path });
  }
}

function planDevices(plan: RootOperation[]): void {
  for (const name of DEVICES) plan.push({ kind: "device", path: `/dev/${name}`, source: `/dev/${name}` });
  plan.push({ kind: "link", path: "/dev/fd", target: "/proc/self/fd" });
  for (const [fd, name] of ["stdin", "stdout", "stderr"].entries())
    plan.push({ kind: "link", path: `/dev/${name}`, target: `/proc/self/fd/${fd}` });
}

/** The bytes that the keeper reads: four strings for each operation. */
export function encodePlan(plan: readonly RootOperation[]): Buffer {
  const strings: string[] = [];
  for (const operation of plan) {
    switch (operation.kind) {
      case "dir":
        strings.push("dir", operation.path, operation.mode.toString(8), "");
        break;
      case "bind":
        strings.push("bind", operation.source, operation.target, "");
        break;
      case "file":
        strings.push("file", operation.path, operation.mode.toString(8), operation.content);
        break;
      case "copy":
        strings.push("copy", operation.source, operation.target, operation.mode.toString(8));
        break;
      case "device":
        strings.push("device", operation.path, operation.source, "");
        break;
      case "link":
        strings.push("link", operation.path, operation.target, "");
        break;
    }
  }
  return encodeStrings(strings);
}

/** NUL-terminated strings, one after another; a NUL inside one is a bug of the caller. */
export function encodeStrings(strings: readonly string[]): Buffer {
  for (const text of strings) {
    if (text.includes("\0")) throw new Error(`bug: a string for the keeper holds a NUL: ${JSON.stringify(text.slice(0, 80))}`);
  }
  return Buffer.from(strings.map((text) => `${text}\0`).join(""));
}
