/**
 * From a manifest to the programs that bring the image back. The work has parts, in this order:
 *
 *   runtime    maps the interpreter's own files; the same for all images of one interpreter, which share a pool
 *   memory     /var/task, the image's mappings, the stack; from here on a husk belongs to one image
 *   prefault   copies what will be written, maps what will be read
 *   equip      /tmp, descriptors, signals, no capabilities, threads
 *   resume     timers, limits; the process runs
 *
 * A pooled husk has some of them behind it (DESIGN: generic, runtime mapped, image mapped, prefaulted). What is left when
 * a request comes is one program, {@link compileThaw} or {@link compileResume}: one message, one report.
 */
import { createHash } from "node:crypto";
import { dirname } from "node:path";
import { assert, ThawError } from "../base/errors.js";
import { ABI_CONSTANTS, structBytes, writeStruct } from "../linux/abi.js";
import {
  AT_FDCWD,
  MADV_POPULATE_READ,
  MADV_WIPEONFORK,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_GROWSDOWN,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MAP_SHARED,
  O_CLOEXEC,
  O_CREAT,
  O_RDWR,
  O_TMPFILE,
  O_TRUNC,
  PROT_READ,
  PROT_WRITE,
  SYS,
} from "../linux/syscalls.js";
import { type Channels, compileChannels, compileDescriptors } from "./compile-descriptors.js";
import { type Facts, type FileIdentity, type Region, storedRuns, type ThreadFacts, type TmpEntry } from "./facts.js";
import { extendedState, register, signalFrame } from "./frame.js";
import { type Program, ProgramBuilder, passed, type Slot } from "./program.js";
import type { PageRun } from "./working-set.js";

/** How pages arrive; a subset of the engine's loaders, which all compile to these. */
export type PageSource = "lazy" | "eager" | "splice";

/** Order in which descriptors are passed with {@link compileMemory} and {@link compileThaw}; the channels only with the latter. */
export const THAW_PASSES = { pages: 0, task: 1, control: 2, log: 3 } as const;
/** … and with {@link compileResume}. */
export const RESUME_PASSES = { control: 0, log: 1 } as const;

/** Ends of phases, in order. */
export const STAMPS = {
  runtime: 9,
  files: 1,
  regions: 2,
  stack: 3,
  prefetch: 8,
  tmp: 4,
  descriptors: 5,
  process: 6,
  threads: 7,
} as const;

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
  return (
    (region.kind === "file" || region.kind === "shared") &&
    region.path !== undefined &&
    !region.path.startsWith(`${TASK_ROOT}/`) &&
    !region.path.startsWith("/tmp/")
  );
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
    if ((region.kind === "file" || region.kind === "shared") && region.identity === undefined) {
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
  if (facts.descriptors.length > 900) {
    throw new ThawError("FREEZE_REFUSED", {
      what: `${facts.descriptors.length} descriptors are open`,
      why: "at most 900 are restored",
      fix: "close what is not needed",
    });
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
      program.call(`map ${path}`, SYS.mmap, [
        region.start,
        region.end - region.start,
        region.prot,
        flags,
        file.slot,
        region.offset ?? 0n,
      ]);
    }
    program.call(`close ${path}`, SYS.close, [file.slot]);
    program.release(file.slot);
  }
}

/** Maps the interpreter's files; its bytes identify the pool (see {@link runtimeKey}). */
export function compileRuntime(facts: Facts): Program {
  const program = new ProgramBuilder();
  mapRuntime(program, facts);
  return program.build();
}

function mapRuntime(program: ProgramBuilder, facts: Facts): void {
  mapFiles(program, facts.regions.filter(isRuntimeFile));
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
    program.call(`move ${region.path ?? "vdso"}`, SYS.mremap, [
      ABI_CONSTANTS.HUSK_VDSO_AT + (region.start - first.start),
      bytes,
      bytes,
      3,
      region.start,
    ]);
  }
}

/** Copies stored pages of a region by reading them; the region must be mapped and writable by then. */
function readRuns(program: ProgramBuilder, region: Region): void {
  for (const run of storedRuns(region)) {
    const offset = (region.slot ?? 0n) + (run.address - region.start);
    program.call(`read ${region.kind} pages`, SYS.pread64, [passed(THAW_PASSES.pages), run.address, run.bytes, offset], {
      expect: run.bytes,
    });
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
    if (region.prot !== (PROT_READ | PROT_WRITE))
      program.call(`${label}: protect`, SYS.mprotect, [region.start, bytes, region.prot]);
  } else {
    program.call(label, SYS.mmap, [
      region.start,
      bytes,
      region.prot,
      MAP_PRIVATE | MAP_FIXED,
      passed(THAW_PASSES.pages),
      region.slot ?? 0n,
    ]);
  }
}

/** Everything at its address, for husks that are parked. Passes: pages and task of {@link THAW_PASSES}. */
export function compileMemory(facts: Facts, source: PageSource): Program {
  const program = new ProgramBuilder();
  mapMemory(program, facts, source);
  return program.build();
}

function mapMemory(program: ProgramBuilder, facts: Facts, source: PageSource): void {
  const empty = program.text("");
  const moveMountEmptyPath = 4;
  program.call(`mount the code on ${TASK_ROOT}`, SYS.move_mount, [
    passed(THAW_PASSES.task),
    empty,
    AT_FDCWD,
    program.text(TASK_ROOT),
    moveMountEmptyPath,
  ]);
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
  const order = [
    mm.startCode,
    mm.endCode,
    mm.startData,
    mm.endData,
    mm.startBrk,
    mm.brk,
    mm.startStack,
    mm.argStart,
    mm.argEnd,
    mm.envStart,
    mm.envEnd,
    0n,
  ];
  for (const [index, value] of order.entries()) map.writeBigUInt64LE(value, index * 8);
  map.writeUInt32LE(0, 96);
  map.writeUInt32LE(0xffffffff, 100);
  program.call("set brk and the argument area", SYS.prctl, [PR_SET_MM, PR_SET_MM_MAP, program.data(map), map.length, 0]);
  program.stamp(STAMPS.stack);
}

/**
 * Copies what an invocation writes before the function runs into it. The touches are ordinary faults, but in one go and in order of
 * address; MADV_POPULATE_WRITE costs more for runs of one or two pages, and a thread beside the start was slower on two
 * processors (docs/design/thaw.md).
 */
function copyAhead(program: ProgramBuilder, written: readonly PageRun[]): void {
  program.touch(
    "copy written pages",
    written.flatMap((run) => Array.from({ length: run.pages }, (_, index) => run.address + BigInt(index) * 4096n)),
  );
}

/** Maps pages that are only read; what is shared with others costs no memory. */
function mapAhead(program: ProgramBuilder, read: readonly PageRun[]): void {
  for (const run of read)
    program.call("map read pages", SYS.madvise, [run.address, run.pages * 4096, MADV_POPULATE_READ], { mayFail: true });
}

/** For pooled husks: the working set, or a part of it, is copied and mapped ahead. */
export function compilePrefault(written: readonly PageRun[], read: readonly PageRun[]): Program {
  const program = new ProgramBuilder();
  copyAhead(program, written);
  mapAhead(program, read);
  return program.build();
}

/** Inode numbers of a fresh tmpfs count up; its root takes the one before this. */
const FIRST_INODE = 2;
/** Numbers of files that are gone by now are used up by as many nameless ones, up to this many. */
const SKIPPED_INODES_MAX = 2000;

function makeTmpEntry(program: ProgramBuilder, entry: TmpEntry, at: string, contents: Buffer): void {
  const label = `make ${entry.path}`;
  const path = program.text(at);
  if (entry.type === "directory") {
    program.call(label, SYS.mkdir, [path, entry.mode]);
  } else if (entry.type === "link") {
    program.call(label, SYS.symlink, [program.text(entry.target), path]);
  } else {
    const fd = program.slot();
    const bytes = contents.subarray(entry.at, entry.at + entry.bytes);
    program.call(label, SYS.openat, [AT_FDCWD, path, O_CREAT | O_TRUNC | O_CLOEXEC | 1, entry.mode], { result: fd });
    if (bytes.length > 0)
      program.call(`fill ${entry.path}`, SYS.write, [fd, program.data(bytes), bytes.length], { expect: bytes.length });
    program.call(`close ${entry.path}`, SYS.close, [fd]);
    program.release(fd);
  }
}

/**
 * Files get the inode numbers that they had, because programs remember them (SQLite refuses to write to a database whose
 * number changed): made in the order of their numbers, and moved to their place where a directory was made after what lies in it.
 */
function restoreTmp(program: ProgramBuilder, entries: readonly TmpEntry[], contents: Buffer): void {
  const ordered = [...entries].sort((a, b) => a.inode - b.inode);
  const skipped = (ordered.at(-1)?.inode ?? 0) - FIRST_INODE + 1 - new Set(ordered.map(({ inode }) => inode)).size;
  const numbered = (ordered[0]?.inode ?? 0) >= FIRST_INODE && skipped <= SKIPPED_INODES_MAX;
  const places = new Map<number, string>();
  const moved: { from: string; to: string }[] = [];
  const directories = new Set(["/tmp"]);
  let next = FIRST_INODE;
  for (const entry of numbered ? ordered : entries) {
    const there = numbered ? places.get(entry.inode) : undefined;
    const at = directories.has(dirname(entry.path)) ? entry.path : `/tmp/.thaw-${moved.length}`;
    if (at !== entry.path) moved.push({ from: at, to: entry.path });
    else if (entry.type === "directory") directories.add(entry.path);
    if (there !== undefined) {
      program.call(`make ${entry.path}`, SYS.link, [program.text(there), program.text(at)]);
      continue;
    }
    for (; numbered && next < entry.inode; next++) {
      const fd = program.slot();
      program.call("skip an inode number", SYS.openat, [AT_FDCWD, program.text("/tmp"), O_TMPFILE | O_RDWR | O_CLOEXEC, 0], {
        result: fd,
      });
      program.call("skip an inode number", SYS.close, [fd]);
      program.release(fd);
    }
    next++;
    makeTmpEntry(program, entry, at, contents);
    places.set(entry.inode, at);
  }
  // Directories come before what lies in them, as the entries do.
  for (const { path } of entries) {
    const from = moved.find(({ to }) => to === path)?.from;
    if (from !== undefined) program.call(`move ${path}`, SYS.rename, [program.text(from), program.text(path)]);
  }
  // Times last, innermost first: making a file touches its directory.
  for (const entry of [...entries].reverse()) {
    const times = Buffer.alloc(32);
    for (const at of [0, 16]) {
      times.writeBigInt64LE(BigInt(entry.mtimeS), at);
      times.writeBigInt64LE(BigInt(entry.mtimeNs), at + 8);
    }
    const symlinkNoFollow = 0x100;
    program.call(`times of ${entry.path}`, SYS.utimensat, [
      AT_FDCWD,
      program.text(entry.path),
      program.data(times),
      symlinkNoFollow,
    ]);
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

/** What {@link compileThaw} needs beside the facts. */
export interface ThawInputs {
  /** Contents of temporary files. */
  readonly contents: Buffer;
  readonly source: PageSource;
  /** The husk has no runtime mapped yet. */
  readonly runtime: boolean;
  /** Pages to copy before the function can fault on them. */
  readonly prefetch?: readonly PageRun[];
}

/** Everything that a generic or runtime-mapped husk still lacks: it becomes the function. Passes: {@link THAW_PASSES}. */
export function compileThaw(facts: Facts, inputs: ThawInputs): Program {
  const program = new ProgramBuilder();
  if (inputs.runtime) {
    mapRuntime(program, facts);
    program.stamp(STAMPS.runtime);
  }
  mapMemory(program, facts, inputs.source);
  if (inputs.prefetch !== undefined) {
    copyAhead(program, inputs.prefetch);
    program.stamp(STAMPS.prefetch);
  }
  equip(program, facts, inputs.contents, { control: passed(THAW_PASSES.control), log: passed(THAW_PASSES.log) });
  program.releaseThreads();
  startThreads(program, facts);
  resume(program, facts);
  return program.build();
}

/** For parked husks: everything that does not belong to one start. The threads wait. */
export function compileEquip(facts: Facts, contents: Buffer): Program {
  const program = new ProgramBuilder();
  equip(program, facts, contents, undefined);
  startThreads(program, facts);
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
