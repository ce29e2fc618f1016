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

/** By name for `getaddrinfo` and `getservbyname`, as distributions have them: those that programs connect to. */
const SERVICES: readonly string[] = [
  "echo 7/tcp",
  "echo 7/udp",
  "discard 9/tcp sink null",
  "discard 9/udp sink null",
  "daytime 13/tcp",
  "qotd 17/tcp quote",
  "ftp-data 20/tcp",
  "ftp 21/tcp",
  "ssh 22/tcp",
  "telnet 23/tcp",
  "smtp 25/tcp mail",
  "time 37/tcp timserver",
  "time 37/udp timserver",
  "domain 53/tcp",
  "domain 53/udp",
  "tftp 69/udp",
  "http 80/tcp www",
  "kerberos 88/tcp kerberos5 krb5",
  "kerberos 88/udp kerberos5 krb5",
  "pop3 110/tcp pop-3",
  "nntp 119/tcp readnews untp",
  "ntp 123/udp",
  "imap2 143/tcp imap",
  "snmp 161/tcp",
  "snmp 161/udp",
  "ldap 389/tcp",
  "ldap 389/udp",
  "https 443/tcp",
  "https 443/udp",
  "submissions 465/tcp ssmtp smtps urd",
  "syslog 514/udp",
  "submission 587/tcp",
  "ldaps 636/tcp",
  "ldaps 636/udp",
  "domain-s 853/tcp",
  "domain-s 853/udp",
  "ftps 990/tcp",
  "imaps 993/tcp",
  "pop3s 995/tcp",
  "ms-sql-s 1433/tcp",
  "nfs 2049/tcp",
  "nfs 2049/udp",
  "mysql 3306/tcp",
  "sip 5060/tcp",
  "sip 5060/udp",
  "postgresql 5432/tcp postgres",
  "amqps 5671/tcp",
  "amqp 5672/tcp",
  "redis 6379/tcp",
  "http-alt 8080/tcp webcache",
];

const ETC: Readonly<Record<string, string>> = {
  "/etc/passwd":
    "root:x:0:0:root:/root:/bin/sh\nfunction:x:1000:1000:function:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
  "/etc/group": "root:x:0:\nfunction:x:1000:\nnogroup:x:65534:\n",
  "/etc/hosts": "127.0.0.1 localhost thaw\n::1 localhost\n",
  "/etc/hostname": "thaw\n",
  "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
  "/etc/resolv.conf": "",
  "/etc/protocols": "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6 41 IPv6\nipv6-icmp 58 IPv6-ICMP\n",
  "/etc/services": SERVICES.map((line) => `${line}\n`).join(""),
};

/**
 * What the C library finds its list of libraries with (Python: `ctypes.util.find_library`). Where `ldconfig` is a script around it, the
 * program itself.
 */
const LDCONFIG = ["/sbin/ldconfig.real", "/sbin/ldconfig"] as const;

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
  const ldconfig = LDCONFIG.find((path) => existsSync(path));
  if (ldconfig !== undefined) copy(ldconfig, throughLinks("/sbin/ldconfig"), 0o755);
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
