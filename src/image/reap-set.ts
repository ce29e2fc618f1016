/**
 * REAP's own recording (ASPLOS'21, §5.2): the **trace** lists the pages that missed until the first answer, in order of first access; the
 * **set** is a contiguous copy of them, in order of address, so that one read brings it and runs are installed whole. The trace names
 * the checksum of its set: one without the other, or an altered one, is recorded anew.
 *
 * Trace file: `thaw-reap-trace 1 <sha256 of what follows> <bytes of what follows>`, then compressed JSON. Its `accesses` hold two numbers
 * for each page: distance in pages from the page before, and 1 for a write or 0 for a read.
 */
import { z } from "../base/schema.js";
import { PAGE_BYTES } from "../base/units.js";
import { ABI_CONSTANTS as ABI, structBytes, writeStruct } from "../linux/abi.js";
import { isStored } from "./compile-paged.js";
import { type Facts, type Region, storedRuns } from "./facts.js";
import { addressOf, endOf, gapsIn, joinRuns, type PageRun, pageAt, SortedRuns } from "./page-runs.js";
import { decodeSealed, encodeSealed } from "./sealed.js";

/** One page that missed. */
export interface Access {
  readonly address: bigint;
  readonly write: boolean;
}

/** What a trace file holds. */
export interface ReapTrace {
  readonly accesses: readonly Access[];
  readonly setSha256: string;
  readonly setBytes: number;
}

/** A run of pages and where it lies. */
export interface Placed extends PageRun {
  /** Offset in the page space. */
  readonly from: bigint;
  /** Offset in the set. */
  readonly at: number;
}

/** What an installation consists of. */
export interface Installation {
  readonly copies: readonly Placed[];
  readonly zeros: readonly PageRun[];
  /** Length of the set. */
  readonly bytes: number;
}

export const NOTHING_INSTALLED: Installation = { copies: [], zeros: [], bytes: 0 };

/** How the pager brings an installation; see abi.ts, PAGE_… */
export type PageMode = "lazy" | "parallel" | "file" | "direct";

const MODES = { lazy: ABI.PAGE_LAZY, parallel: ABI.PAGE_PARALLEL, file: ABI.PAGE_FILE, direct: ABI.PAGE_DIRECT } as const;
const FILE_VERSION = 1;
const FILE_NAME = "thaw-reap-trace";
const PAGES_MAX = 2 ** 40;
const PLAN_BYTES = structBytes("page_plan");
const RANGE_BYTES = structBytes("page_range");

const bodySchema = z.object({
  accesses: z.array(z.int()),
  setSha256: z.string().regex(/^[0-9a-f]{64}$/),
  setBytes: z.int().nonnegative(),
});

/** The bytes of a trace file. */
export function encodeTrace(trace: ReapTrace): Buffer {
  const accesses: number[] = [];
  let last = 0;
  for (const { address, write } of trace.accesses) {
    const page = pageAt(address);
    accesses.push(page - last, write ? 1 : 0);
    last = page;
  }
  return encodeSealed(FILE_NAME, FILE_VERSION, { accesses, setSha256: trace.setSha256, setBytes: trace.setBytes });
}

/** Parses a trace file; undefined when it is damaged in any way or of another version. */
export function decodeTrace(bytes: Buffer): ReapTrace | undefined {
  const parsed = bodySchema.safeParse(decodeSealed(FILE_NAME, FILE_VERSION, bytes));
  if (!parsed.success || parsed.data.accesses.length % 2 !== 0) return undefined;
  const accesses: Access[] = [];
  let page = 0;
  for (let index = 0; index < parsed.data.accesses.length; index += 2) {
    page += parsed.data.accesses[index] ?? 0;
    if (page < 0 || page >= PAGES_MAX) return undefined;
    accesses.push({ address: addressOf(page), write: parsed.data.accesses[index + 1] === 1 });
  }
  return { accesses, setSha256: parsed.data.setSha256, setBytes: parsed.data.setBytes };
}

/** What the pager tells of an instance: one 64-bit number for each page, its lowest bit set for a write. */
export function accessesOf(payload: Buffer): Access[] {
  const accesses: Access[] = [];
  for (let at = 0; at + 8 <= payload.length; at += 8) {
    const value = payload.readBigUInt64LE(at);
    accesses.push({ address: value & ~4095n, write: (value & 1n) === 1n });
  }
  return accesses;
}

/** Where traced pages lie. Pages that the page space does not hold are zeros; pages of no region are left out. */
export function installationOf(facts: Facts, accesses: readonly Access[]): Installation {
  const touched = new SortedRuns(
    joinRuns(
      accesses.map(({ address }) => ({ address, pages: 1 })),
      0,
    ),
  );
  const copies: Placed[] = [];
  const zeros: PageRun[] = [];
  let bytes = 0;
  for (const region of facts.regions.filter(isStored)) {
    const own = touched.within(region.start, region.end);
    if (own.length === 0) continue;
    const stored = new SortedRuns(storedRuns(region));
    for (const run of own) {
      const parts = stored.within(run.address, endOf(run));
      for (const part of parts) {
        copies.push({ ...part, from: offsetOf(region, part.address), at: bytes });
        bytes += part.pages * PAGE_BYTES;
      }
      zeros.push(...gapsIn(run, parts));
    }
  }
  return { copies, zeros, bytes };
}

/** Where a region begins: in which page space, and where in it. */
function fromOf({ kind, slot = 0n }: Region): bigint {
  return kind === "base" ? slot | ABI.PAGE_FROM_BASE : slot;
}

function offsetOf(region: Region, address: bigint): bigint {
  return fromOf(region) + (address - region.start);
}

/** The pager's plan: what it registers, and what it installs before the function runs. */
export function encodePagePlan(facts: Facts, mode: PageMode, what: Installation): Buffer {
  const segments = facts.regions.filter(isStored);
  const bytes = Buffer.alloc(PLAN_BYTES + (segments.length + what.copies.length + what.zeros.length) * RANGE_BYTES);
  let at = writeStruct(bytes, 0, "page_plan", {
    magic: ABI.PAGE_PLAN_MAGIC,
    mode: MODES[mode],
    segments: segments.length,
    copies: what.copies.length,
    zeros: what.zeros.length,
    set_bytes: what.bytes,
  });
  for (const region of segments)
    at = writeStruct(bytes, at, "page_range", {
      address: region.start,
      bytes: region.end - region.start,
      from: fromOf(region),
      at: region.kind === "overlay" ? 1 : 0,
    });
  for (const { address, pages, from, at: place } of what.copies)
    at = writeStruct(bytes, at, "page_range", { address, bytes: pages * PAGE_BYTES, from, at: place });
  for (const { address, pages } of what.zeros) at = writeStruct(bytes, at, "page_range", { address, bytes: pages * PAGE_BYTES });
  return bytes;
}
