/**
 * From a manifest to the programs that bring the image back. The work has parts, in this order:
 *
 *   runtime    maps the interpreter's own files; the same for all images of one interpreter, which share a pool
 *   memory     /var/task, the image's mappings, the stack; from here on a husk belongs to one image
 *   prefault   copies what will be written, maps what will be read
 *   equip      /tmp, descriptors, signals, no capabilities, threads
 *   resume     timers, limits; the process runs
 *
 * A pooled husk has some of them behind it (docs/design/thaw.md: generic, runtime mapped, image mapped, prefaulted). What is left when
 * a request comes is one program, {@link compileThaw} or {@link compileResume}: one message, one report.
 */
import { assert, ThawError } from "../base/errors.js";
import { ABI_CONSTANTS, structBytes, writeStruct } from "../linux/abi.js";
import { PROT_WRITE, SYS } from "../linux/syscalls.js";
import type { Channels } from "./channels.js";
import { readNothingAround } from "./compile-advice.js";
import { mapNamed, mapOpened } from "./compile-backed.js";
import { compileChannels, compileDescriptors } from "./compile-descriptors.js";
import { copyAhead, mapMemory, mapRuntime, type PageSource, RESUME_PASSES, STAMPS, THAW_PASSES } from "./compile-memory.js";
import { compileOwners } from "./compile-owners.js";
import { bringLocks, waitForPager } from "./compile-paged.js";
import { forgetRuntime, type TouchTracking, trackTouches } from "./compile-recording.js";
import { compileSettings } from "./compile-settings.js";
import { restoreTmp } from "./compile-tmp.js";
import { compileDatabases } from "./databases.js";
import { type Facts, isFile, isShared, type Region, type ThreadFacts } from "./facts.js";
import { extendedState, register, signalFrame } from "./frame.js";
import type { PageRun } from "./page-runs.js";
import { type Program, ProgramBuilder, passed } from "./program.js";

const CAPABILITY_VERSION_3 = 0x20080522;
const RLIMIT_COUNT = 16;
const FD_BASE_MIN = 512;
/** Refused beyond (docs/design/freeze.md). */
const DESCRIPTORS_MAX = 900;

/** Where the husk may put its own descriptors without meeting the image's. */
export function fdBase(facts: Facts): number {
  return Math.max(FD_BASE_MIN, ...facts.descriptors.map((one) => one.fd + 2));
}

/** Whether all bytes from `start` to `end` are memory of the process alone that it may write. */
function isWritable({ regions }: Facts, start: bigint, end: bigint): boolean {
  for (let at = start; at < end; ) {
    const region = regions.find((one) => !isShared(one) && (one.prot & PROT_WRITE) !== 0 && one.start <= at && at < one.end);
    if (region === undefined) return false;
    at = region.end;
  }
  return true;
}

/** Refuses what no program can bring back; called when an image is made. */
export function checkFacts(facts: Facts): void {
  for (const region of facts.regions) {
    const where = `the mapping at 0x${region.start.toString(16)} (${region.path ?? region.kind})`;
    if (region.start < ABI_CONSTANTS.HUSK_ZONE_END && region.end > ABI_CONSTANTS.HUSK_ZONE_START) {
      throw new ThawError("FREEZE_REFUSED", {
        what: `${where} lies where the husk lives`,
        why: "an allocator asked for that address",
        fix: "do not map memory at fixed addresses",
      });
    }
    if (isFile(region) && region.identity === undefined) {
      throw new ThawError("FREEZE_REFUSED", { what: `${where} cannot be identified`, why: "its file could not be examined" });
    }
    if (region.path?.endsWith(" (deleted)") && region.kind !== "vdso") {
      throw new ThawError("FREEZE_REFUSED", {
        what: `${where} maps a deleted file`,
        why: "nothing can open it again",
        fix: "keep mapped files in place",
      });
    }
  }
  for (const [at, bytes] of facts.seeds) {
    if (!isWritable(facts, at, at + BigInt(bytes))) {
      throw new ThawError("FREEZE_REFUSED", {
        what: `the ${bytes} bytes at 0x${at.toString(16)}, which were to be seeded anew, are not memory that can be written`,
        why: "the function's code wrote to descriptor 3, or freed what its runtime held",
        fix: "leave descriptor 3 alone: it belongs to the runtime",
      });
    }
  }
  if (facts.descriptors.length > DESCRIPTORS_MAX) {
    throw new ThawError("FREEZE_REFUSED", {
      what: `${facts.descriptors.length} descriptors are open`,
      why: `at most ${DESCRIPTORS_MAX} are restored`,
      fix: "close what is not needed",
    });
  }
}

function restoreSignals(program: ProgramBuilder, facts: Facts): void {
  for (const action of facts.sigactions) {
    const bytes = Buffer.alloc(32);
    bytes.writeBigUInt64LE(action.handler, 0);
    bytes.writeBigUInt64LE(action.flags, 8);
    bytes.writeBigUInt64LE(action.restorer, 16);
    bytes.writeBigUInt64LE(action.mask, 24);
    program.call(`action of signal ${action.signal}`, SYS.rt_sigaction, [action.signal, program.data(bytes), 0, 8]);
  }
}

function restoreBarriers(program: ProgramBuilder, { membarrier = 0 }: Facts): void {
  for (let command = 1; command <= membarrier; command *= 2)
    if ((membarrier & command) !== 0) program.call("register for memory barriers", SYS.membarrier, [command, 0, 0]);
}

function restoreTimers(program: ProgramBuilder, facts: Facts): void {
  for (const [which, [everyS, everyUs, valueS, valueUs]] of facts.itimers.entries()) {
    if (valueS === 0 && valueUs === 0) continue;
    const bytes = Buffer.alloc(32);
    for (const [index, value] of [everyS, everyUs, valueS, valueUs].entries()) bytes.writeBigInt64LE(BigInt(value), index * 8);
    program.call(`interval timer ${which}`, SYS.setitimer, [which, program.data(bytes), 0]);
  }
}

/** Gives up every capability; nothing that needs one may follow. */
export function dropCapabilities(program: ProgramBuilder): void {
  const header = Buffer.alloc(8);
  header.writeUInt32LE(CAPABILITY_VERSION_3);
  program.call("drop capabilities", SYS.capset, [program.data(header), program.data(Buffer.alloc(24))]);
}

function threadState(program: ProgramBuilder, thread: ThreadFacts, number: number, frame: Facts["frame"]): bigint {
  const stateAt = program.keptData(extendedState(thread, frame), 64);
  const frameAt = program.keptData(signalFrame(thread, stateAt), 16);
  const name = Buffer.alloc(16);
  name.write(thread.name, 0, 15, "utf8");
  const bytes = Buffer.alloc(structBytes("thread_state"));
  writeStruct(bytes, 0, "thread_state", {
    frame: frameAt,
    fs_base: register(thread, "fsBase"),
    gs_base: register(thread, "gsBase"),
    tid_address: thread.tidAddress,
    tid_word: thread.tidWord,
    robust_list: thread.robustList,
    robust_bytes: thread.robustBytes,
    rseq: thread.rseq,
    rseq_bytes: thread.rseqBytes,
    rseq_signature: thread.rseqSignature,
    number: BigInt(number),
    name: [name.readBigUInt64LE(0), name.readBigUInt64LE(8)],
  });
  return program.keptData(bytes);
}

/** What {@link compileThaw} needs beside the facts. */
export interface ThawInputs {
  /** Contents of temporary files. */
  readonly contents: Buffer;
  readonly source: PageSource;
  /** The husk has no runtime mapped yet. */
  readonly runtime: boolean;
  /** Pages to copy before the function can fault on them. */
  readonly prefetch?: readonly PageRun[];
  /** The start records what it touches; nothing may be copied ahead then. */
  readonly record?: TouchTracking;
  /** The husk begins without pages of the interpreter that somebody else's set brought. */
  readonly forget?: boolean;
  /** Mappings in which each fault that needs the disk reads one page. */
  readonly readsAlone?: (region: Region) => boolean;
}

/** Everything that a generic or runtime-mapped husk still lacks: it becomes the function. Passes: {@link THAW_PASSES}. */
export function compileThaw(facts: Facts, inputs: ThawInputs): Program {
  const program = new ProgramBuilder();
  if (inputs.runtime) {
    mapRuntime(program, facts);
    program.stamp(STAMPS.runtime);
  } else if (inputs.record !== undefined || inputs.forget === true) {
    forgetRuntime(program, facts);
  }
  mapMemory(program, facts, inputs.source);
  if (inputs.record?.exact === true) trackTouches(program, facts, passed(THAW_PASSES.userfaultfd));
  if (inputs.readsAlone !== undefined) readNothingAround(program, facts, inputs.readsAlone);
  if (inputs.source === "paged") {
    waitForPager(program, passed(THAW_PASSES.userfaultfd), fdBase(facts));
    bringLocks(program, facts.threads);
    program.stamp(STAMPS.prefetch);
  }
  if (inputs.prefetch !== undefined) {
    copyAhead(program, inputs.prefetch);
    program.stamp(STAMPS.prefetch);
  }
  equip(program, facts, inputs.contents, { control: passed(THAW_PASSES.control), log: passed(THAW_PASSES.log) });
  startThreads(program, facts);
  program.releaseThreads(true);
  resume(program, facts);
  return program.build();
}

/** For parked husks: everything that does not belong to one start. The threads wait. */
export function compileEquip(facts: Facts, contents: Buffer): Program {
  const program = new ProgramBuilder();
  equip(program, facts, contents, undefined);
  startThreads(program, facts);
  program.releaseThreads(false);
  return program.build();
}

/** For husks that were equipped: the rest. Passes: {@link RESUME_PASSES}. */
export function compileResume(facts: Facts): Program {
  const program = new ProgramBuilder(ABI_CONSTANTS.HUSK_RESUME_AT);
  compileChannels(
    program,
    facts.descriptors,
    { control: passed(RESUME_PASSES.control), log: passed(RESUME_PASSES.log) },
    fdBase(facts),
  );
  program.stamp(STAMPS.descriptors);
  program.releaseThreads(true);
  resume(program, facts);
  return program.build();
}

function equip(program: ProgramBuilder, facts: Facts, contents: Buffer, channels: Channels | undefined): void {
  program.call("umask", SYS.umask, [0]);
  restoreTmp(program, facts.tmp, contents);
  mapNamed(program, facts.regions);
  program.call("umask", SYS.umask, [facts.umask]);
  program.call("working directory", SYS.chdir, [program.text(facts.cwd)]);
  program.stamp(STAMPS.tmp);
  compileDescriptors(program, facts.descriptors, { channels, fdBase: fdBase(facts), contents });
  mapOpened(program, facts.regions);
  compileDatabases(program, facts);
  program.stamp(STAMPS.descriptors);
  restoreSignals(program, facts);
  restoreBarriers(program, facts);
  dropCapabilities(program);
  program.stamp(STAMPS.process);
}

/** Those that would run code of the function wait until they are released: what they make, threads and children, must not take numbers that others have to get. */
function startThreads(program: ProgramBuilder, facts: Facts): void {
  // The main thread renews what must be unique with its first request; the others do not wait for it.
  for (const [at, bytes] of facts.seeds)
    program.call(`seed 0x${at.toString(16)}`, SYS.getrandom, [at, bytes, 0], { expect: bytes });
  // In this order most get their numbers without asking for them.
  for (const thread of facts.threads.slice(1).sort((a, b) => a.number - b.number)) {
    const state = threadState(program, thread, thread.number, facts.frame);
    program.thread(`thread ${thread.name}`, state, !thread.sleeps);
  }
  program.stamp(STAMPS.threads);
}

function resume(program: ProgramBuilder, facts: Facts): void {
  const main = facts.threads[0];
  assert(main !== undefined, "process without threads");
  restoreTimers(program, facts);
  compileSettings(program, facts);
  compileOwners(program, facts);
  restoreLimits(program, facts);
  program.report();
  program.call("close the husk's descriptors", SYS.close_range, [fdBase(facts), 0xffffffff, 0]);
  program.resume(threadState(program, main, 0, facts.frame));
}

/** Limits come after the descriptors, whose number they could forbid. */
function restoreLimits(program: ProgramBuilder, facts: Facts): void {
  assert(facts.rlimits.length === RLIMIT_COUNT, "resource limits");
  for (const [resource, [soft, hard]] of facts.rlimits.entries()) program.limit(resource, soft, hard);
}
