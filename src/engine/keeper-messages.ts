/**
 * What the keeper's messages say, as plain values, and their bytes (layouts: src/linux/abi.ts).
 */
import type { ThawError } from "../base/errors.js";
import { ABI_CONSTANTS as ABI, fieldOffset, readStruct, structBytes, writeStruct } from "../linux/abi.js";
import type { LimitWrite } from "../linux/cgroups.js";
import { encodeStrings } from "../linux/rootfs.js";

/** How an instance ended. */
export interface InstanceExit {
  readonly code: number | undefined;
  /** Number of the signal that ended the function's process. */
  readonly signal: number | undefined;
  readonly oomKills: number;
  readonly maxRssKb: number;
  readonly peakBytes: number;
  /** How many times something had been sent to it; what was sent later it never got. */
  readonly sends: number;
  /** It left bytes unread in its control socket: a request that the runtime did not read to its end. */
  readonly unread?: boolean;
}

/** What the keeper tells about one instance. `onExit` is the last call. Buffers belong to the callee. */
export interface InstanceListener {
  onData(bytes: Buffer): void;
  onLog(bytes: Buffer): void;
  /** The function closed its control descriptor. */
  onControlEnd?(): void;
  /** A limit that could not be written, or a husk that could not be executed. */
  onFailure?(error: ThawError): void;
  /** The pager installed what its plan says, and the husk goes on. */
  onPaged?(report: PagedReport): void;
  onExit(exit: InstanceExit): void;
}

/** What a husk is made with. */
export interface HuskRequest {
  readonly template: number;
  /** Pid inside the sandbox; 0 lets the kernel choose. */
  readonly pid: number;
  readonly tmpMb: number;
  /** Host uid and gid of the function. */
  readonly uid: number;
}

/** A husk that can run programs. Pids are the host's; `us`: microseconds. */
export interface HuskReady {
  readonly pid: number;
  readonly initPid: number;
  /** Time that the making took. */
  readonly us: number;
}

export type PassedFd = { readonly kind: "file" | "tree"; readonly file: number } | { readonly kind: "control" | "log" };

/** A program for a husk, and the descriptors that it takes. */
export interface StageRequest {
  /** File id of the program. */
  readonly program: number;
  readonly fds: readonly PassedFd[];
  readonly fdBase: number;
  readonly flags?: number;
}

/** How a program ended. */
export interface HuskReport {
  /** 0, or a negative errno. -EPIPE: the husk died. */
  readonly status: number;
  readonly failedOp: number;
  /** CLOCK_MONOTONIC nanoseconds by slot, 0 = unused. */
  readonly stamps: readonly number[];
}

/** A part of a file that the keeper has open. */
export interface PrefetchRange {
  /** Id that {@link Keeper.openFile} gave. */
  readonly file: number;
  readonly offset: bigint;
  readonly bytes: number;
}

/** File ids of what the pager needs to fill an instance's memory; `set` 0: the plan reads none; `base` 0: the image has none. */
export interface PagedBy {
  readonly plan: number;
  readonly pages: number;
  readonly set: number;
  readonly base: number;
}

/** What the pager did before it let an instance go on. */
export interface PagedReport {
  readonly readUs: number;
  readonly installUs: number;
  readonly pages: number;
  /** Contiguous runs that they were installed as. */
  readonly regions: number;
  /** They were read past the page cache. */
  readonly direct: boolean;
}

/** What became of a prefetch. */
export interface Prefetched {
  /** Time that the pager spent on it; the disk may be at work for longer. */
  readonly us: number;
  /** Pages of the ranges that the page cache did not have before; -1 when nobody can say (no cachestat(2), or the pager ended). */
  readonly pages: number;
}

/** How a helper ended, and what it printed. */
export interface HelperResult {
  readonly code: number | undefined;
  readonly signal: number | undefined;
  readonly stdout: Buffer;
}

const STAGE_BYTES = structBytes("stage");
const STAGE_FD_BYTES = structBytes("stage_fd");
const PREFETCH_RANGE_BYTES = structBytes("prefetch_range");
const STAMPS_AT = fieldOffset("husk_report", "stamps");
const PASS = { file: ABI.PASS_FILE, tree: ABI.PASS_TREE, control: ABI.PASS_CONTROL, log: ABI.PASS_LOG } as const;

/** MSG_HUSK. */
export function encodeHusk(request: HuskRequest): Buffer {
  const payload = Buffer.allocUnsafe(structBytes("husk_make"));
  writeStruct(payload, 0, "husk_make", {
    template_id: request.template,
    pid: request.pid,
    tmp_mb: request.tmpMb,
    uid: request.uid,
  });
  return payload;
}

const encodedLimits = new WeakMap<readonly LimitWrite[], Buffer>();

/** MSG_LIMITS. As for stages: a list that is used again is encoded once. */
export function encodeLimits(writes: readonly LimitWrite[]): Buffer {
  let payload = encodedLimits.get(writes);
  if (payload === undefined) {
    payload = encodeStrings(writes.flatMap(({ controller, file, value }) => [controller, file, value]));
    encodedLimits.set(writes, payload);
  }
  return payload;
}

const quietStages = new WeakMap<StageRequest, StageRequest>();

/** The same, but its report may come as late as the function's first bytes, or its end: nobody waits for it. The same object for the same request. */
export function quietly(request: StageRequest): StageRequest {
  let quiet = quietStages.get(request);
  if (quiet === undefined) {
    quiet = { ...request, flags: ABI.STAGE_QUIET };
    quietStages.set(request, quiet);
  }
  return quiet;
}

const encodedStages = new WeakMap<StageRequest, Buffer>();

/** MSG_STAGE. A request that is made again and again is one object, and encoded once: this is on the way of every start. */
export function encodeStage(request: StageRequest): Buffer {
  let payload = encodedStages.get(request);
  if (payload === undefined) {
    payload = stageBytes(request);
    encodedStages.set(request, payload);
  }
  return payload;
}

function stageBytes(request: StageRequest): Buffer {
  const payload = Buffer.allocUnsafe(STAGE_BYTES + request.fds.length * STAGE_FD_BYTES);
  let at = writeStruct(payload, 0, "stage", {
    program_file: request.program,
    fd_count: request.fds.length,
    fd_base: request.fdBase,
    flags: request.flags ?? 0,
  });
  for (const fd of request.fds) {
    at = payload.writeUInt32LE(PASS[fd.kind], at);
    at = payload.writeUInt32LE("file" in fd ? fd.file : 0, at);
  }
  return payload;
}

/** MSG_PREFETCH, one payload for each {@link ABI.PREFETCH_RANGES_MAX} ranges. */
export function encodePrefetch(ranges: readonly PrefetchRange[]): Buffer[] {
  const payloads: Buffer[] = [];
  for (let first = 0; first < ranges.length; first += ABI.PREFETCH_RANGES_MAX) {
    const part = ranges.slice(first, first + ABI.PREFETCH_RANGES_MAX);
    const payload = Buffer.alloc(part.length * PREFETCH_RANGE_BYTES);
    let at = 0;
    for (const { file, offset, bytes } of part) {
      payload.writeUInt32LE(file, at);
      payload.writeBigUInt64LE(offset, at + 8);
      payload.writeBigUInt64LE(BigInt(bytes), at + 16);
      at += PREFETCH_RANGE_BYTES;
    }
    payloads.push(payload);
  }
  return payloads;
}

/** MSG_PAGED_BY. */
export function encodePagedBy(by: PagedBy): Buffer {
  const payload = Buffer.allocUnsafe(structBytes("paged_by"));
  writeStruct(payload, 0, "paged_by", { plan: by.plan, pages: by.pages, set: by.set, base: by.base });
  return payload;
}

/** MSG_PAGED. */
export function decodePaged(payload: Buffer): PagedReport {
  const number = (field: string): number => readStruct(payload, 0, "paged_report", field);
  return {
    readUs: number("read_us"),
    installUs: number("install_us"),
    pages: number("pages"),
    regions: number("regions"),
    direct: number("direct") !== 0,
  };
}

/** MSG_PREFETCHED. */
export function decodePrefetched(payload: Buffer): Prefetched {
  return { us: readStruct(payload, 0, "prefetched", "us"), pages: readStruct(payload, 0, "prefetched", "pages") };
}

/** Several prefetches as one. */
export function allPrefetched(parts: readonly Prefetched[]): Prefetched {
  const unknown = parts.some(({ pages }) => pages < 0);
  return {
    us: parts.reduce((sum, { us }) => sum + us, 0),
    pages: unknown ? -1 : parts.reduce((sum, { pages }) => sum + pages, 0),
  };
}

/** MSG_HUSK_READY. */
export function decodeReady(payload: Buffer): HuskReady {
  return {
    pid: readStruct(payload, 0, "husk_ready", "pid"),
    initPid: readStruct(payload, 0, "husk_ready", "init_pid"),
    us: readStruct(payload, 0, "husk_ready", "us"),
  };
}

/** A wait status as waitpid(2) gives it. */
export function decodeStatus(status: number): { code: number | undefined; signal: number | undefined } {
  const signal = status & 0x7f;
  return signal === 0 ? { code: (status >> 8) & 0xff, signal: undefined } : { code: undefined, signal };
}

/** MSG_EXIT. */
export function decodeExit(payload: Buffer, flags = 0): InstanceExit {
  const number = (field: string): number => readStruct(payload, 0, "exit", field);
  return {
    ...decodeStatus(number("wait_status")),
    oomKills: number("oom_kills"),
    maxRssKb: number("max_rss_kb"),
    peakBytes: number("peak_bytes"),
    sends: number("sends"),
    ...((flags & ABI.EXIT_UNREAD) === 0 ? {} : { unread: true }),
  };
}

/** MSG_STAGE_DONE. */
export function decodeReport(payload: Buffer): HuskReport {
  const stamps: number[] = [];
  for (let slot = 0; slot < ABI.HUSK_STAMPS; slot++) {
    const at = STAMPS_AT + slot * 8;
    stamps.push(payload.readUInt32LE(at) + payload.readUInt32LE(at + 4) * 0x1_0000_0000);
  }
  return {
    status: readStruct(payload, 0, "husk_report", "status"),
    failedOp: readStruct(payload, 0, "husk_report", "failed_op"),
    stamps,
  };
}
