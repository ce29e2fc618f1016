/**
 * From a manifest to the programs that bring the image back. Four stages, each a program of its own, so that a pooled husk can
 * be advanced to any of them ahead of a request (DESIGN: generic, runtime mapped, image mapped, prefaulted):
 *
 *   runtime    maps the interpreter's own files; the same for all images of one interpreter, which share a pool
 *   memory     /var/task, the image's mappings, the stack; from here on a husk belongs to one image
 *   prefault   copies and maps the working set ahead (parked husks)
 *   finish     copies what will be written, /tmp, descriptors, signals, no capabilities, threads, limits, resume
 *
 * A parked husk has the finish stage in two halves: `equip` ahead of the request, `resume` when it comes.
 */
import { createHash } from "node:crypto";
import { ThawError, assert } from "../base/errors.js";
import { ABI_CONSTANTS, structBytes, writeStruct } from "../linux/abi.js";
import {
  AT_FDCWD,
  MADV_POPULATE_READ,
  MADV_POPULATE_WRITE,
  MADV_WIPEONFORK,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_GROWSDOWN,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MAP_SHARED,
  O_CLOEXEC,
  O_CREAT,
  O_TRUNC,
  PROT_READ,
  PROT_WRITE,
  SYS,
} from "../linux/syscalls.js";
import { type Channels, compileChannels, compileDescriptors } from "./compile-descriptors.js";
import { type Facts, type FileIdentity, type Region, type ThreadFacts, type TmpEntry, storedRuns } from "./facts.js";
import { extendedState, register, signalFrame } from "./frame.js";
import { type Program, ProgramBuilder, type Slot, passed } from "./program.js";
import type { PageRun, WorkingSet } from "./working-set.js";

/** How pages arrive; a subset of the engine's loaders, which all compile to these. */
export type PageSource = "lazy" | "eager" | "splice";

/** Order in which descriptors are passed with each stage. */
export const MEMORY_PASSES = { pages: 0, task: 1 } as const;
export const FINISH_PASSES = { control: 0, log: 1 } as const;

/** Stamps in the finish and memory programs. */
export const STAMPS = { files: 1, regions: 2, stack: 3, prefetch: 8, tmp: 4, descriptors: 5, process: 6, threads: 7 } as const;

const CAPABILITY_VERSION_3 = 0x20080522;
const PR_SET_MM = 35;
const PR_SET_MM_MAP = 14;
const RLIMIT_COUNT = 16;
const FD_BASE_MIN = 512;
const TASK_ROOT = "/var/task";

/** Where the husk may put its own descriptors without meeting the image's. */
export function fdBase(facts: Facts): number {
  return Math.max(FD_BASE_MIN, ...facts.descriptors.map((one) => one.fd + 2));
}

/** Whether a region maps a file of the interpreter or its libraries: the same for every image of that interpreter. */
export function isRuntimeFile(region: Region): boolean {
  return (region.kind === "file" || region.kind === "shared") && region.path !== undefined && !region.path.startsWith(`${TASK_ROOT}/`) && !region.path.startsWith("/tmp/");
}

/** Refuses what no program can bring back; called when an image is made. */
export function checkFacts(facts: Facts): void {
  for (const region of facts.regions) {
    const where = `the mapping at 0x${region.start.toString(16)} (${region.path ?? region.kind})`;
    if (region.start < ABI_CONSTANTS.HUSK_ZONE_END && region.end > ABI_CONSTANTS.HUSK_ZONE_START) {
      throw new ThawError("FREEZE_REFUSED", { what: `${where} lies where the husk lives`, why: "an allocator asked for that address", fix: "do not map memory at fixed addresses" });
    }
    if ((region.kind === "file" || region.kind === "shared") && region.identity === undefined) {
      throw new ThawError("FREEZE_REFUSED", { what: `${where} cannot be identified`, why: "its file could not be examined" });
    }
    if (region.path?.endsWith(" (deleted)") && region.kind !== "vdso") {
      throw new ThawError("FREEZE_REFUSED", { what: `${where} maps a deleted file`, why: "nothing can open it again", fix: "keep mapped files in place" });
    }
  }
  if (facts.descriptors.length > 900) {
    throw new ThawError("FREEZE_REFUSED", { what: `${facts.descriptors.length} descriptors are open`, why: "at most 900 are restored", fix: "close what is not needed" });
  }
}

interface OpenFile {
  readonly slot: Slot;
  readonly path: string;
}

/** Opens a file inside the sandbox and makes sure that it is the one which was mapped. */
function openFile(program: ProgramBuilder, path: string, identity: FileIdentity): OpenFile {
  const slot = program.slot();
  program.call(`open ${path}`, SYS.openat, [AT_FDCWD, program.text(path), O_CLOEXEC, 0], { result: slot });
  const bytes = Buffer.alloc(structBytes("file_identity"));
  writeStruct(bytes, 0, "file_identity", {
    inode: identity.inode,
    size: identity.size,
    mtime_s: identity.mtimeS,
    mtime_ns: identity.mtimeNs,
    ctime_s: identity.ctimeS,
    ctime_ns: identity.ctimeNs,
  });
  program.identity(`check that ${path} is unchanged`, slot, program.data(bytes));
  return { slot, path };
}

function mapFiles(program: ProgramBuilder, regions: readonly Region[]): void {
  const byPath = new Map<string, Region[]>();
  for (const region of regions) {
    assert(region.path !== undefined, "file region without path");
    byPath.set(region.path, [...(byPath.get(region.path) ?? []), region]);
  }
  for (const [path, mapped] of byPath) {
    const identity = mapped[0]?.identity;
    assert(identity !== undefined, "file region without identity");
    const file = openFile(program, path, identity);
    for (const region of mapped) {
      const flags = (region.kind === "shared" ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED;
      program.call(`map ${path}`, SYS.mmap, [region.start, region.end - region.start, region.prot, flags, file.slot, region.offset ?? 0n]);
    }
    program.call(`close ${path}`, SYS.close, [file.slot]);
    program.release(file.slot);
  }
}

/** The first stage; its bytes identify the pool (see {@link runtimeKey}). */
export function compileRuntime(facts: Facts): Program {
  const program = new ProgramBuilder();
  mapFiles(program, facts.regions.filter(isRuntimeFile));
  return program.build();
}

/** Images with the same key share husks that have their runtime mapped. */
export function runtimeKey(runtime: Program): string {
  return createHash("sha256").update(runtime.bytes).digest("hex").slice(0, 16);
}

function mapMoved(program: ProgramBuilder, facts: Facts): void {
  const block = facts.regions.filter((region) => region.kind === "vdso");
  const first = block[0];
  if (first === undefined) return;
  for (const region of block) {
    const bytes = region.end - region.start;
    program.call(`move ${region.path ?? "vdso"}`, SYS.mremap, [ABI_CONSTANTS.HUSK_VDSO_AT + (region.start - first.start), bytes, bytes, 3, region.start]);
  }
}

/** Copies stored pages of a region by reading them; the region must be mapped and writable by then. */
function readRuns(program: ProgramBuilder, region: Region): void {
  for (const run of storedRuns(region)) {
    const offset = (region.slot ?? 0n) + (run.address - region.start);
    program.call(`read ${region.kind} pages`, SYS.pread64, [passed(MEMORY_PASSES.pages), run.address, run.bytes, offset], { expect: run.bytes });
  }
}

/** Maps one region where it was; `eager` reads its pages instead of mapping them. */
export function mapRegion(program: ProgramBuilder, region: Region, source: PageSource): void {
  const bytes = region.end - region.start;
  const label = `map ${region.kind} 0x${region.start.toString(16)}`;
  const anonymous = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE;
  const stored = (region.runs?.length ?? 0) > 0;
  if (region.wipe === 1) {
    // Memory that asked to be wiped in a fork starts wiped in a clone too.
    program.call(label, SYS.mmap, [region.start, bytes, region.prot, anonymous, -1, 0]);
    program.call(`${label}: wipe on fork`, SYS.madvise, [region.start, bytes, MADV_WIPEONFORK]);
  } else if (!stored) {
    program.call(label, SYS.mmap, [region.start, bytes, region.prot, anonymous, -1, 0]);
  } else if (source === "eager" && region.kind !== "overlay") {
    program.call(label, SYS.mmap, [region.start, bytes, PROT_READ | PROT_WRITE, anonymous, -1, 0]);
    readRuns(program, region);
    if (region.prot !== (PROT_READ | PROT_WRITE)) program.call(`${label}: protect`, SYS.mprotect, [region.start, bytes, region.prot]);
  } else {
    program.call(label, SYS.mmap, [region.start, bytes, region.prot, MAP_PRIVATE | MAP_FIXED, passed(MEMORY_PASSES.pages), region.slot ?? 0n]);
  }
}

/** The second stage: everything at its address. Passes: {@link MEMORY_PASSES}. */
export function compileMemory(facts: Facts, source: PageSource): Program {
  const program = new ProgramBuilder();
  const empty = program.text("");
  const moveMountEmptyPath = 4;
  program.call(`mount the code on ${TASK_ROOT}`, SYS.move_mount, [passed(MEMORY_PASSES.task), empty, AT_FDCWD, program.text(TASK_ROOT), moveMountEmptyPath]);
  mapFiles(
    program,
    facts.regions.filter((region) => (region.kind === "file" || region.kind === "shared") && !isRuntimeFile(region)),
  );
  mapMoved(program, facts);
  program.stamp(STAMPS.files);
  for (const region of facts.regions) {
    if (region.kind === "anon" || region.kind === "heap" || region.kind === "overlay") mapRegion(program, region, source);
  }
  program.stamp(STAMPS.regions);
  for (const region of facts.regions) {
    if (region.kind !== "stack") continue;
    // A stack that shall grow must be anonymous: its few pages are read, not mapped.
    const flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_GROWSDOWN;
    program.call("map the stack", SYS.mmap, [region.start, region.end - region.start, region.prot, flags, -1, 0]);
    readRuns(program, region);
  }
  const map = Buffer.alloc(104);
  const { mm } = facts;
  const order = [mm.startCode, mm.endCode, mm.startData, mm.endData, mm.startBrk, mm.brk, mm.startStack, mm.argStart, mm.argEnd, mm.envStart, mm.envEnd, 0n];
  for (const [index, value] of order.entries()) map.writeBigUInt64LE(value, index * 8);
  map.writeUInt32LE(0, 96);
  map.writeUInt32LE(0xffffffff, 100);
  program.call("set brk and the argument area", SYS.prctl, [PR_SET_MM, PR_SET_MM_MAP, program.data(map), map.length, 0]);
  program.stamp(STAMPS.stack);
  return program.build();
}

/** Prefetching is help, not state: what fails here costs a fault later. */
function copyAhead(program: ProgramBuilder, written: readonly PageRun[]): void {
  for (const run of written) program.call("copy written pages", SYS.madvise, [run.address, run.pages * 4096, MADV_POPULATE_WRITE], { mayFail: true });
}

/** The third stage, for parked husks: the working set is copied and mapped ahead. */
export function compilePrefault(set: WorkingSet): Program {
  const program = new ProgramBuilder();
  copyAhead(program, set.written);
  for (const run of set.read) program.call("map read pages", SYS.madvise, [run.address, run.pages * 4096, MADV_POPULATE_READ], { mayFail: true });
  return program.build();
}

function restoreTmp(program: ProgramBuilder, entries: readonly TmpEntry[], contents: Buffer): void {
  for (const entry of entries) {
    const path = program.text(entry.path);
    if (entry.type === "directory") {
      program.call(`make ${entry.path}`, SYS.mkdir, [path, entry.mode]);
    } else if (entry.type === "link") {
      program.call(`link ${entry.path}`, SYS.symlink, [program.text(entry.target), path]);
    } else {
      const fd = program.slot();
      const bytes = contents.subarray(entry.at, entry.at + entry.bytes);
      program.call(`make ${entry.path}`, SYS.openat, [AT_FDCWD, path, O_CREAT | O_TRUNC | O_CLOEXEC | 1, entry.mode], { result: fd });
      if (bytes.length > 0) program.call(`fill ${entry.path}`, SYS.write, [fd, program.data(bytes), bytes.length], { expect: bytes.length });
      program.call(`close ${entry.path}`, SYS.close, [fd]);
      program.release(fd);
    }
  }
  // Times last, innermost first: making a file touches its directory.
  for (const entry of [...entries].reverse()) {
    const times = Buffer.alloc(32);
    for (const at of [0, 16]) {
      times.writeBigInt64LE(BigInt(entry.mtimeS), at);
      times.writeBigInt64LE(BigInt(entry.mtimeNs), at + 8);
    }
    const symlinkNoFollow = 0x100;
    program.call(`times of ${entry.path}`, SYS.utimensat, [AT_FDCWD, program.text(entry.path), program.data(times), symlinkNoFollow]);
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

function threadState(program: ProgramBuilder, thread: ThreadFacts, frame: Facts["frame"]): bigint {
  const stateAt = program.data(extendedState(thread, frame), 64);
  const frameAt = program.data(signalFrame(thread, stateAt), 16);
  const name = Buffer.alloc(16);
  name.write(thread.name, 0, 15, "utf8");
  const bytes = Buffer.alloc(structBytes("thread_state"));
  writeStruct(bytes, 0, "thread_state", {
    frame: frameAt,
    fs_base: register(thread, "fsBase"),
    gs_base: register(thread, "gsBase"),
    tid_address: thread.tidAddress,
    robust_list: thread.robustList,
    robust_bytes: thread.robustBytes,
    rseq: thread.rseq,
    rseq_bytes: thread.rseqBytes,
    rseq_signature: thread.rseqSignature,
    name: [name.readBigUInt64LE(0), name.readBigUInt64LE(8)],
  });
  return program.data(bytes);
}

/** What the finish stage needs beside the facts. */
export interface FinishInputs {
  readonly contents: Buffer;
  /** Pages to copy before the function can fault on them; undefined: none. */
  readonly prefetch?: readonly PageRun[];
}

const CHANNELS = { control: passed(FINISH_PASSES.control), log: passed(FINISH_PASSES.log) };

/** The last stage: the husk becomes the function. Passes: {@link FINISH_PASSES}. */
export function compileFinish(facts: Facts, inputs: FinishInputs): Program {
  const program = new ProgramBuilder();
  const { prefetch } = inputs;
  if (prefetch !== undefined && prefetch.length > 0) {
    if (process.env["THAW_OVERLAP"] === "1") {
      // First: a thread keeps what it was cloned with, and this one may outlive the start.
      dropCapabilities(program);
      program.background(() => copyAhead(program, prefetch));
    } else copyAhead(program, prefetch);
    program.stamp(STAMPS.prefetch);
  }
  equip(program, facts, inputs.contents, CHANNELS);
  program.releaseThreads();
  startThreads(program, facts);
  resume(program, facts);
  return program.build();
}

/** For parked husks: everything of the last stage that does not belong to one start. Its threads wait. */
export function compileEquip(facts: Facts, contents: Buffer): Program {
  const program = new ProgramBuilder();
  equip(program, facts, contents, undefined);
  startThreads(program, facts);
  return program.build();
}

/** For husks that were equipped: the rest. Passes: {@link FINISH_PASSES}. */
export function compileResume(facts: Facts): Program {
  const program = new ProgramBuilder(ABI_CONSTANTS.HUSK_RESUME_AT);
  compileChannels(program, facts.descriptors, CHANNELS, fdBase(facts));
  program.stamp(STAMPS.descriptors);
  program.releaseThreads();
  resume(program, facts);
  return program.build();
}

function equip(program: ProgramBuilder, facts: Facts, contents: Buffer, channels: Channels | undefined): void {
  program.call("umask", SYS.umask, [0]);
  restoreTmp(program, facts.tmp, contents);
  program.call("umask", SYS.umask, [facts.umask]);
  program.call("working directory", SYS.chdir, [program.text(facts.cwd)]);
  program.stamp(STAMPS.tmp);
  compileDescriptors(program, facts.descriptors, { channels, fdBase: fdBase(facts), contents });
  program.stamp(STAMPS.descriptors);
  restoreSignals(program, facts);
  dropCapabilities(program);
  program.stamp(STAMPS.process);
}

function startThreads(program: ProgramBuilder, facts: Facts): void {
  for (const thread of facts.threads.slice(1)) program.thread(`thread ${thread.name}`, threadState(program, thread, facts.frame));
  program.stamp(STAMPS.threads);
}

function resume(program: ProgramBuilder, facts: Facts): void {
  const main = facts.threads[0];
  assert(main !== undefined, "process without threads");
  restoreTimers(program, facts);
  restoreLimits(program, facts);
  program.report();
  program.call("close the husk's descriptors", SYS.close_range, [fdBase(facts), 0xffffffff, 0]);
  program.resume(threadState(program, main, facts.frame));
}

/** Limits come after the descriptors, whose number they could forbid. */
function restoreLimits(program: ProgramBuilder, facts: Facts): void {
  assert(facts.rlimits.length === RLIMIT_COUNT, "resource limits");
  for (const [resource, [soft, hard]] of facts.rlimits.entries()) {
    const bytes = Buffer.alloc(16);
    bytes.writeBigUInt64LE(soft, 0);
    bytes.writeBigUInt64LE(hard, 8);
    program.call(`resource limit ${resource}`, SYS.prlimit64, [0, resource, program.data(bytes), 0]);
  }
}
