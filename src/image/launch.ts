/** Programs that are not tied to an image: what every husk runs first, and the start of an interpreter. */
import { seccompFilter } from "../linux/seccomp.js";
import { SYS } from "../linux/syscalls.js";
import { CONTROL_FD } from "./channels.js";
import { dropCapabilities } from "./compile.js";
import { mountTask, TASK_ROOT } from "./compile-memory.js";
import { type Program, ProgramBuilder, passed } from "./program.js";

const PR_SET_DUMPABLE = 4;
const PR_SET_NO_NEW_PRIVS = 38;
const PR_CAPBSET_DROP = 24;
/** CAP_CHECKPOINT_RESTORE; later ones are refused with EINVAL by kernels that do not have them. */
const LAST_KNOWN_CAPABILITY = 40;
const LAST_CAPABILITY = 63;
const SECCOMP_SET_MODE_FILTER = 1;
const SIG_SETMASK = 2;
const RLIMIT_CORE = 4;
const RLIMIT_NOFILE = 7;
const FUNCTION_FILES_MAX = 1024n;

/** Order in which descriptors are passed to {@link compileBoot}'s program. */
export const BOOT_PASSES = { control: 0, log: 1, task: 2 } as const;
/** Where a husk that boots keeps its own descriptors. */
export const BOOT_FD_BASE = 512;

/** What every husk runs as soon as it exists: no new privileges, the seccomp filter, /proc/self its own. */
export function compileBase(): Program {
  const program = new ProgramBuilder();
  const filter = seccompFilter();
  const header = Buffer.alloc(16);
  header.writeUInt16LE(filter.length / 8, 0);
  header.writeBigUInt64LE(program.data(filter), 8);
  // What a capability could be regained through; the capabilities themselves go when the function begins.
  for (let capability = 0; capability <= LAST_CAPABILITY; capability++) {
    program.call(`bounding set without capability ${capability}`, SYS.prctl, [PR_CAPBSET_DROP, capability, 0, 0, 0], {
      mayFail: capability > LAST_KNOWN_CAPABILITY,
    });
  }
  program.call("no new privileges", SYS.prctl, [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0]);
  program.call("dumpable", SYS.prctl, [PR_SET_DUMPABLE, 1, 0, 0, 0]);
  program.call("seccomp filter", SYS.seccomp, [SECCOMP_SET_MODE_FILTER, 0, program.data(header)]);
  return program.build();
}

/** Turns a husk into an interpreter: the only start that does not need an image. */
export function compileBoot(launch: {
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}): Program {
  const program = new ProgramBuilder();
  mountTask(program, passed(BOOT_PASSES.task));
  program.install("control socket", passed(BOOT_PASSES.control), CONTROL_FD, false);
  program.call("stdout", SYS.dup3, [passed(BOOT_PASSES.log), 1, 0]);
  program.call("stderr", SYS.dup3, [passed(BOOT_PASSES.log), 2, 0]);
  program.call("working directory", SYS.chdir, [program.text(TASK_ROOT)]);
  for (const [resource, limit] of [
    // Of 1 the kernel makes neither a file nor a handler's input; of 0, the latter (core(5)).
    [RLIMIT_CORE, 1n],
    [RLIMIT_NOFILE, FUNCTION_FILES_MAX],
  ] as const)
    program.limit(resource, limit, limit);
  dropCapabilities(program);
  program.stamp(1);
  program.report();
  program.call("close the husk's descriptors", SYS.close_range, [BOOT_FD_BASE, 0xffffffff, 0]);
  program.call("unblock signals", SYS.rt_sigprocmask, [SIG_SETMASK, program.data(Buffer.alloc(8)), 0, 8]);
  const argv = program.pointers(launch.argv.map((text) => program.text(text)));
  const env = program.pointers(Object.entries(launch.env).map(([name, value]) => program.text(`${name}=${value}`)));
  program.call(`execute ${launch.argv[0]}`, SYS.execve, [program.text(launch.argv[0] ?? ""), argv, env]);
  return program.build();
}
