/** Mappings and pages of an image as system calls: the runtime, memory and prefault parts of a start (compile.ts). */
import { createHash } from "node:crypto";
import { assert } from "../base/errors.js";
import { PAGE_BYTES } from "../base/units.js";
import { ABI_CONSTANTS, structBytes, writeStruct } from "../linux/abi.js";
import {
  AT_FDCWD,
  MADV_GUARD_INSTALL,
  MADV_POPULATE_READ,
  MADV_WIPEONFORK,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_GROWSDOWN,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MAP_SHARED,
  O_CLOEXEC,
  PROT_READ,
  PROT_WRITE,
  SYS,
} from "../linux/syscalls.js";
import { type Facts, type FileIdentity, isFile, type Region, storedRuns } from "./facts.js";
import { register } from "./frame.js";
import { type PageRun, pageAddresses, SortedRuns } from "./page-runs.js";
import { type Program, ProgramBuilder, passed, type Slot } from "./program.js";
import { waitsForRequest } from "./run-ahead.js";

/** How pages arrive. Of the loaders, `splice` is `lazy` with a prefetch; `paged`: anonymous memory that the pager fills. */
export type PageSource = "lazy" | "eager" | "paged";

/**
 * Order in which descriptors are passed with {@link compileMemory} and {@link compileThaw}; the channels only with the latter, the
 * device only for a recording that is exact. An image without a base passes its own pages in the base's place.
 */
export const THAW_PASSES = { pages: 0, task: 1, base: 2, control: 3, log: 4, userfaultfd: 5 } as const;
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

const PR_SET_MM = 35;
const PR_SET_MM_MAP = 14;
const MOVE_MOUNT_F_EMPTY_PATH = 4;
const MREMAP_MAYMOVE_FIXED = 3;
/** Below the stack pointer, and no signal handler writes there (System V ABI for x86-64, 3.2.2). */
const RED_ZONE_BYTES = 128n;
/** Where a function finds its code. */
export const TASK_ROOT = "/var/task";

/** Puts the function's code in its place. @param task its tree of mounts */
export function mountTask(program: ProgramBuilder, task: Slot): void {
  const empty = program.text("");
  const root = program.text(TASK_ROOT);
  program.call(`mount the code on ${TASK_ROOT}`, SYS.move_mount, [task, empty, AT_FDCWD, root, MOVE_MOUNT_F_EMPTY_PATH]);
}

/** Whether a region maps a file of the interpreter or its libraries: the same for every image of that interpreter. */
export function isRuntimeFile(region: Region): boolean {
  return (
    isFile(region) && region.path !== undefined && !region.path.startsWith(`${TASK_ROOT}/`) && !region.path.startsWith("/tmp/")
  );
}

/** Whether a region is mapped by {@link mapRegion}: from a page space, or as empty memory. */
export function isMemory({ kind }: Region): boolean {
  return kind === "anon" || kind === "heap" || kind === "overlay" || kind === "base";
}

/** Whether a region's pages are read by the program that maps it, whatever the loader. */
export function isRead({ kind }: Region): boolean {
  return kind === "stack" || kind === "common";
}

/**
 * Stored pages that the program reads ({@link isRead}). Of the main thread's stack what its calls have left below it (a collection of garbage goes
 * deeper than most requests) is nobody's any more: a signal could have overwritten it at any time. That is so in the runtime's read, of which it is
 * known that it has the stack to itself; elsewhere code may have stacks of its own inside that one.
 */
export function readPages({ regions, threads: [main] }: Facts): { region: Region; runs: PageRun[] }[] {
  const lowest = main === undefined || !waitsForRequest(main) ? 0n : register(main, "rsp") - RED_ZONE_BYTES;
  const from = lowest - (lowest % BigInt(PAGE_BYTES));
  return regions.filter(isRead).map((region) => {
    const isMain = region.kind === "stack" && region.start <= from && from < region.end;
    return { region, runs: new SortedRuns(storedRuns(region)).within(isMain ? from : region.start, region.end) };
  });
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
    const mapped = byPath.get(region.path);
    if (mapped === undefined) byPath.set(region.path, [region]);
    else mapped.push(region);
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

/** Maps the files that {@link isRuntimeFile} names. */
export function mapRuntime(program: ProgramBuilder, facts: Facts): void {
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
      MREMAP_MAYMOVE_FIXED,
      region.start,
    ]);
  }
}

/** The page space that a region is mapped from. */
function spaceOf(region: Region): ReturnType<typeof passed> {
  return passed(region.kind === "base" ? THAW_PASSES.base : THAW_PASSES.pages);
}

/** Copies stored pages of a region by reading them; the region must be mapped and writable by then. */
function readRuns(program: ProgramBuilder, region: Region, runs = storedRuns(region)): void {
  for (const run of runs) {
    const offset = (region.slot ?? 0n) + (run.address - region.start);
    const bytes = run.pages * PAGE_BYTES;
    program.call(`read ${region.kind} pages`, SYS.pread64, [spaceOf(region), run.address, bytes, offset], { expect: bytes });
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
  } else if (!stored || source === "paged") {
    program.call(label, SYS.mmap, [region.start, bytes, region.prot, anonymous, -1, 0]);
  } else if (source === "eager" && region.kind !== "overlay") {
    program.call(label, SYS.mmap, [region.start, bytes, PROT_READ | PROT_WRITE, anonymous, -1, 0]);
    readRuns(program, region);
    if (region.prot !== (PROT_READ | PROT_WRITE))
      program.call(`${label}: protect`, SYS.mprotect, [region.start, bytes, region.prot]);
  } else {
    // More addresses than the machine has memory may have been reserved; the kernel would refuse that at once.
    program.call(label, SYS.mmap, [
      region.start,
      bytes,
      region.prot,
      MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
      spaceOf(region),
      region.slot ?? 0n,
    ]);
  }
}

/**
 * Memory that can only be anonymous has its few pages read, not mapped: a stack that shall grow, and what is shared with children. Each clone has its own of
 * the latter.
 */
function readRegion(program: ProgramBuilder, region: Region, runs: PageRun[]): void {
  const [start, bytes] = [region.start, region.end - region.start];
  if (region.kind === "stack") {
    const flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_GROWSDOWN;
    program.call("map the stack", SYS.mmap, [start, bytes, region.prot, flags, -1, 0]);
    readRuns(program, region, runs);
    return;
  }
  const writable = PROT_READ | PROT_WRITE;
  program.call("map shared memory", SYS.mmap, [start, bytes, writable, MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS, -1, 0]);
  readRuns(program, region, runs);
  if (region.prot !== writable) program.call("protect shared memory", SYS.mprotect, [start, bytes, region.prot]);
}

/** Everything at its address, for husks that are parked. Passes: pages and task of {@link THAW_PASSES}. `more` goes behind it. */
export function compileMemory(facts: Facts, source: PageSource, more?: (program: ProgramBuilder) => void): Program {
  const program = new ProgramBuilder();
  mapMemory(program, facts, source);
  more?.(program);
  return program.build();
}

/** Everything else at its address. */
export function mapMemory(program: ProgramBuilder, facts: Facts, source: PageSource): void {
  mountTask(program, passed(THAW_PASSES.task));
  mapFiles(
    program,
    facts.regions.filter((region) => isFile(region) && !isRuntimeFile(region)),
  );
  mapMoved(program, facts);
  program.stamp(STAMPS.files);
  for (const region of facts.regions) {
    if (isMemory(region)) mapRegion(program, region, source);
  }
  program.stamp(STAMPS.regions);
  for (const { region, runs } of readPages(facts)) readRegion(program, region, runs);
  for (const [start, end] of facts.guards)
    program.call(`guard 0x${start.toString(16)}`, SYS.madvise, [start, end - start, MADV_GUARD_INSTALL]);
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
export function copyAhead(program: ProgramBuilder, written: readonly PageRun[]): void {
  program.touch("copy written pages", pageAddresses(written));
}

/** Maps pages that are only read; what is shared with others costs no memory. */
function mapAhead(program: ProgramBuilder, read: readonly PageRun[]): void {
  for (const run of read)
    program.call("map read pages", SYS.madvise, [run.address, run.pages * PAGE_BYTES, MADV_POPULATE_READ], { mayFail: true });
}

/** Threads to be made ahead, so that an image's find those with their numbers; what nobody needs ends, so none are made for numbers that are out of reach. */
export function sparesFor({ threads }: Facts): number {
  const numbers = threads.slice(1).map(({ number }) => number);
  return Math.max(1, ...numbers.filter((number) => number <= ABI_CONSTANTS.HUSK_SPARES_MAX + 1)) - 1;
}

/** For pooled husks: the working set, or a part of it, is copied and mapped ahead, and threads are made. */
export function compilePrefault(written: readonly PageRun[], read: readonly PageRun[], threads = 0): Program {
  const program = new ProgramBuilder();
  if (threads > 0) program.spareThreads(threads);
  copyAhead(program, written);
  mapAhead(program, read);
  return program.build();
}
