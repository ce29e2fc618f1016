/** What the kernel and our privileges allow. */
import { join } from "node:path";
import type { Check, Machine } from "./doctor-machine.js";

/** MADV_POPULATE_WRITE, with which a start copies pages ahead, came with 5.14 (madvise(2)). */
const KERNEL_MIN = [5, 14] as const;
/** The oldest with which thaw was tried. */
const KERNEL_TRIED = [6, 1] as const;

function isAtLeast(release: string, [needMajor, needMinor]: readonly [number, number]): boolean {
  const [, major, minor] = /^(\d+)\.(\d+)/.exec(release) ?? [];
  return Number(major) > needMajor || (Number(major) === needMajor && Number(minor) >= needMinor);
}

/** Linux on x86-64. */
export function checkPlatform(machine: Machine): Check {
  const ok = machine.platform === "linux" && machine.arch === "x64";
  const here = `${machine.platform} on ${machine.arch}`;
  if (ok) return { name: "platform", ok, required: true, says: "This is Linux on x86-64." };
  return {
    name: "platform",
    ok,
    required: true,
    says: `This is ${here}: functions run only on Linux on x86-64.`,
    fix: "Run thaw on such a machine: `thaw serve --boot-only`, which needs no freezing, needs one too.",
  };
}

/** Its version. */
export async function checkKernel(machine: Machine): Promise<Check> {
  const release = (await machine.read("/proc/sys/kernel/osrelease"))?.trim() ?? "unknown";
  const base = { name: "kernel", required: true };
  const tried = KERNEL_TRIED.join(".");
  if (isAtLeast(release, KERNEL_TRIED)) return { ...base, ok: true, says: `Linux ${release} is new enough (${tried}).` };
  if (isAtLeast(release, KERNEL_MIN))
    return { ...base, ok: true, says: `Linux ${release} is older than any with which thaw was tried (${tried}), and may do.` };
  return {
    ...base,
    ok: false,
    says: `Linux ${release} is too old: pages are copied ahead with MADV_POPULATE_WRITE, which came with ${KERNEL_MIN.join(".")}.`,
    fix: `Boot Linux ${tried} or newer.`,
  };
}

/** Number (capabilities(7)) and need of each capability that the keeper and the extractor use. */
const CAPABILITIES = {
  CAP_CHOWN: [0, "give files to a sandbox's user"],
  CAP_DAC_OVERRIDE: [1, "write below /sys/fs/cgroup and read code of any owner"],
  CAP_KILL: [5, "end a function that runs as another user"],
  CAP_SETGID: [6, "run a function as another group"],
  CAP_SETUID: [7, "run a function as another user"],
  CAP_NET_ADMIN: [12, "bring up the loopback device of a sandbox"],
  CAP_SYS_PTRACE: [19, "stop a process and read its memory"],
  CAP_SYS_ADMIN: [21, "make namespaces and mounts, and open mapped files"],
} as const;

/** Root, and capabilities that a container may have taken away. */
export async function checkPrivileges(machine: Machine): Promise<Check> {
  const status = (await machine.read("/proc/self/status")) ?? "";
  const uid = /^Uid:\s+\d+\s+(\d+)/m.exec(status)?.[1];
  const held = BigInt(`0x${/^CapEff:\s+([0-9a-f]+)/m.exec(status)?.[1] ?? "0"}`);
  const missing = Object.entries(CAPABILITIES).filter(([, [bit]]) => (held & (1n << BigInt(bit))) === 0n);
  const ok = uid === "0" && missing.length === 0;
  if (ok) return { name: "privileges", ok, required: true, says: "Running as root, with every capability that is needed." };
  const lacking = missing.map(([name, [, need]]) => `${name} (to ${need})`).join(", ");
  const who = uid === "0" ? "Running as root" : `Running as user ${uid ?? "unknown"}, not as root`;
  return {
    name: "privileges",
    ok,
    required: true,
    says: lacking === "" ? `${who}.` : `${who}, without ${lacking}.`,
    fix:
      uid === "0"
        ? "Grant them to this container or service (docker: --privileged, or --cap-add for each; systemd: AmbientCapabilities and CapabilityBoundingSet)."
        : "Run as root (sudo): `thaw serve --boot-only` needs that too.",
  };
}

const NAMESPACES = ["user", "pid", "mount", "ipc", "uts", "net", "cgroup"] as const;

/** Makes all of a sandbox's namespaces at once in a child; when that fails, one at a time, to say which. */
export async function checkNamespaces(machine: Machine): Promise<Check> {
  const base = { name: "namespaces", required: true };
  const limit = (await machine.read("/proc/sys/user/max_user_namespaces"))?.trim();
  if (limit === "0") {
    return {
      ...base,
      ok: false,
      says: "User namespaces are switched off: user.max_user_namespaces is 0.",
      fix: "sysctl -w user.max_user_namespaces=10000, and the same line in /etc/sysctl.d/.",
    };
  }
  const unshare = (kinds: readonly string[]): ReturnType<Machine["run"]> => {
    const root = kinds.includes("user") ? ["--map-root-user"] : [];
    return machine.run("/usr/bin/unshare", [...kinds.map((kind) => `--${kind}`), ...root, "--fork", "/bin/true"]);
  };
  const all = await unshare(NAMESPACES);
  if (all.ok) return { ...base, ok: true, says: `A child with its own ${NAMESPACES.join(", ")} namespaces could be made.` };
  if (all.missing) {
    const absent: string[] = [];
    for (const kind of NAMESPACES)
      if (!(await machine.exists(`/proc/self/ns/${kind === "mount" ? "mnt" : kind}`))) absent.push(kind);
    if (absent.length === 0)
      return { ...base, ok: true, says: "The kernel has all namespaces (not tried: /usr/bin/unshare is not installed)." };
    return {
      ...base,
      ok: false,
      says: `The kernel lacks ${absent.join(", ")} namespaces.`,
      fix: "Boot a kernel that was built with them.",
    };
  }
  const refused: string[] = [];
  for (const kind of NAMESPACES) if (!(await unshare([kind])).ok) refused.push(kind);
  return {
    ...base,
    ok: false,
    says: `A child with its own namespaces could not be made (${refused.length > 0 ? `refused: ${refused.join(", ")}` : "each works, together they do not"}): ${all.output}.`,
    fix: "Run as root on the host, or in a container that may make namespaces (docker: --privileged); raise user.max_*_namespaces if one is 0.",
  };
}

/** Time namespaces: without them images do not outlive a reboot. */
export async function checkTime(machine: Machine): Promise<Check> {
  const base = { name: "time namespace", required: false };
  const tried = await machine.run("/usr/bin/unshare", ["--time", "--fork", "/bin/true"]);
  const exists = await machine.exists("/proc/self/ns/time");
  if (tried.ok || (exists && tried.missing)) {
    return {
      ...base,
      ok: true,
      says: tried.ok ? "A time namespace could be made." : "The kernel has time namespaces (not tried).",
    };
  }
  return {
    ...base,
    ok: false,
    says: `A time namespace could not be made: ${exists ? tried.output : "the kernel has none"}. Images cannot be thawed after this machine has rebooted.`,
    fix: exists
      ? "Run as root on the host."
      : "Boot a kernel built with CONFIG_TIME_NS; until then functions boot, and are frozen anew, after a reboot.",
  };
}

/** What restoring a process asks of the kernel's configuration. */
export async function checkCheckpoint(machine: Machine): Promise<Check> {
  const base = { name: "checkpoint", required: true };
  // /proc/sys/kernel/ns_last_pid exists only in kernels built with it, unlike map_files.
  if (!(await machine.exists("/proc/sys/kernel/ns_last_pid"))) {
    return {
      ...base,
      ok: false,
      says: "This kernel was built without CONFIG_CHECKPOINT_RESTORE: the memory layout of a process cannot be set.",
      fix: "Boot a kernel that has it; those of Debian, Ubuntu and Fedora do.",
    };
  }
  const refused = await machine.tryMapFiles();
  if (refused === undefined)
    return { ...base, ok: true, says: "The kernel has CONFIG_CHECKPOINT_RESTORE, and mapped files can be opened." };
  return {
    ...base,
    ok: false,
    says: `Mapped files cannot be opened through /proc/PID/map_files: ${refused}.`,
    fix: "CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in the host's user namespace is needed: run as root on the host.",
  };
}

/** Whether processes may be stopped and read. */
export async function checkPtrace(machine: Machine): Promise<Check> {
  const base = { name: "ptrace", required: true };
  const scope = (await machine.read("/proc/sys/kernel/yama/ptrace_scope"))?.trim();
  // Scope 1 and 2 let a holder of CAP_SYS_PTRACE trace; 3 nobody, until the next boot.
  if (scope !== "3")
    return { ...base, ok: true, says: `Tracing is allowed (${scope === undefined ? "no Yama" : `Yama scope ${scope}`}).` };
  return {
    ...base,
    ok: false,
    says: "Yama forbids all tracing until the next boot (kernel.yama.ptrace_scope is 3).",
    fix: "Set kernel.yama.ptrace_scope to 2 or less in /etc/sysctl.d/ and reboot.",
  };
}

/** Whether system calls can be filtered. */
export async function checkSeccomp(machine: Machine): Promise<Check> {
  const actions = (await machine.read("/proc/sys/kernel/seccomp/actions_avail")) ?? "";
  const ok = actions.split(/\s+/).includes("errno");
  if (ok) return { name: "seccomp", ok, required: true, says: "System calls can be filtered." };
  return {
    name: "seccomp",
    ok,
    required: true,
    says: "This kernel cannot filter system calls (no seccomp filters).",
    fix: "Boot a kernel built with CONFIG_SECCOMP_FILTER.",
  };
}

const NEWER = "Boot Linux 6.7 or newer, built with CONFIG_USERFAULTFD; in a container, pass /dev/userfaultfd in.";

/** A working set is exact where userfaultfd can switch the kernel's fault-around off (docs/design/working-set.md). */
export async function checkRecording(machine: Machine, nativeDir: string): Promise<Check> {
  const base = { name: "recording", required: false };
  const tried = await machine.run(join(nativeDir, "extractor"), ["tracking"]);
  if (tried.ok && tried.output.includes('"ok":true'))
    return { ...base, ok: true, says: "What a function touches can be recorded exactly (userfaultfd)." };
  if (tried.missing)
    return { ...base, ok: true, says: "Whether working sets can be recorded exactly was not tried: the extractor is not built." };
  const why = /"why":"([^"]*)"/.exec(tried.output)?.[1] ?? tried.output;
  return {
    ...base,
    ok: false,
    says: `Working sets cannot be recorded exactly (${why}): pages beside those that a function touches count too, and starts from a cold disk read more.`,
    // The device is there, then, and its mode is 0600.
    fix: why.endsWith(": Permission denied") ? "Run as root." : NEWER,
  };
}

/** Memory is copied while the process runs where the kernel notes what is written meanwhile (docs/design/freeze.md). */
export async function checkWrites(machine: Machine, nativeDir: string): Promise<Check> {
  const base = { name: "writes", required: false };
  const { output, missing } = await machine.run(join(nativeDir, "extractor"), ["tracking"]);
  const noted = /"writes":"(\w+)"/.exec(output)?.[1];
  if (noted === "again" || noted === "once") {
    const means = noted === "again" ? "userfaultfd" : "soft-dirty bits";
    return {
      ...base,
      ok: true,
      says: `Memory can be copied while its process runs: what it writes meanwhile is noted (${means}).`,
    };
  }
  if (missing)
    return {
      ...base,
      ok: true,
      says: "Whether memory can be copied while its process runs was not tried: the extractor is not built.",
    };
  return {
    ...base,
    ok: false,
    says: "What a process writes cannot be noted: it stands still while all of its memory is copied, and no image can be taken of an instance that goes on serving.",
    fix: "Boot Linux 6.7 or newer, or one built with CONFIG_MEM_SOFT_DIRTY.",
  };
}
