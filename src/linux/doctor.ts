/**
 * `thaw doctor`: looks at the machine once, tries what can be tried, and says in plain words what works, what does
 * not, and what to do. The server asks the same questions before it starts, so both give the same answers.
 */
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { checkCgroups } from "./doctor-cgroups.js";
import {
  checkCheckpoint,
  checkKernel,
  checkNamespaces,
  checkPlatform,
  checkPrivileges,
  checkPtrace,
  checkRecording,
  checkSeccomp,
  checkTime,
  checkWrites,
} from "./doctor-kernel.js";
import { type Check, type Machine, thisMachine } from "./doctor-machine.js";
import {
  checkDataDir,
  checkDisk,
  checkFreeMemory,
  checkIdleProcessors,
  checkInterpreters,
  checkLimits,
  checkNative,
  checkOvercommit,
  checkPageCache,
} from "./doctor-setup.js";
import type { Interpreter } from "./interpreters.js";

export type { Check } from "./doctor-machine.js";

/** Everything that was found. */
export interface MachineReport {
  /** Every required check passed: this machine can serve, freeze and thaw. */
  readonly ok: boolean;
  /** Processes can be frozen and thawed here; false is what `serve --boot-only` is for. */
  readonly canFreeze: boolean;
  /** Functions can run here, if only by boot. */
  readonly canBoot: boolean;
  readonly checks: readonly Check[];
  /** What functions can run on here; a server that asked need not ask again. */
  readonly interpreters: readonly Interpreter[];
}

/** What is looked at; the defaults are those of `thaw serve`. */
export interface ProbeOptions {
  /** The server's data directory; it need not exist. Without it, the working directory's `data`. */
  readonly dataDir?: string;
  /** Where the native helpers were built; default: the package's own `native/build`. */
  readonly nativeDir?: string;
  readonly machine?: Machine;
}

/** The checks on which every sandbox depends: where one fails, `serve --boot-only` is no way out. */
const BOOTING = ["platform", "privileges", "namespaces", "seccomp", "cgroups", "native"];
/** Those on which freezing depends: the others concern only this run's set-up, or are advice. */
const FREEZING = [...BOOTING, "kernel", "checkpoint", "ptrace", "data"];

/** Probes the machine: tenths of a second, most of them spent in asking interpreters. Leaves nothing behind. */
export async function probeMachine(options: ProbeOptions = {}): Promise<MachineReport> {
  const machine = options.machine ?? thisMachine();
  const dataDir = resolve(options.dataDir ?? "data");
  const packageDir = join(dirname(fileURLToPath(import.meta.url)), "../..");
  const nativeDir = options.nativeDir ?? join(packageDir, "native/build");
  const platform = checkPlatform(machine);
  // Elsewhere every further answer would only repeat the first.
  if (!platform.ok) return { ok: false, canFreeze: false, canBoot: false, checks: [platform], interpreters: [] };
  const asking = machine.interpreters();
  const rest = await Promise.all([
    checkKernel(machine),
    checkPrivileges(machine),
    checkNamespaces(machine),
    checkTime(machine),
    checkCheckpoint(machine),
    checkPtrace(machine),
    checkSeccomp(machine),
    checkRecording(machine, nativeDir),
    checkWrites(machine, nativeDir),
    checkCgroups(machine),
    checkNative(machine, nativeDir),
    asking.then(checkInterpreters),
    checkDataDir(machine, dataDir),
    checkDisk(machine, dataDir),
    checkLimits(machine),
    checkOvercommit(machine),
    checkIdleProcessors(machine),
    checkPageCache(machine),
    checkFreeMemory(machine),
  ]);
  const checks: Check[] = [platform, ...rest];
  return {
    ok: checks.every((check) => check.ok || !check.required),
    canFreeze: checks.every((check) => check.ok || !FREEZING.includes(check.name)),
    canBoot: checks.every((check) => check.ok || !(check.stopsBoots ?? BOOTING.includes(check.name))),
    checks,
    interpreters: await asking,
  };
}
