import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ABI_CONSTANTS as ABI, readStruct, readStructBig, structBytes } from "../linux/abi.js";
import type { Facts } from "./facts.js";
import { accessesOf, decodeTrace, encodePagePlan, encodeTrace, installationOf, NOTHING_INSTALLED } from "./reap-set.js";

const page = (number: number): bigint => BigInt(number) * 4096n;
const SHA = "ab".repeat(32);

const accesses = fc.array(fc.record({ address: fc.integer({ min: 0, max: 2 ** 35 }).map(page), write: fc.boolean() }), {
  maxLength: 60,
});
const traces = fc.record({ accesses, setSha256: fc.constant(SHA), setBytes: fc.nat() });

/** A heap of ten pages at page 100, of which 2–3 and 6 are stored; an overlay of one page at 200; memory that holds nothing at 300. */
const facts = {
  regions: [
    { kind: "heap", start: page(100), end: page(110), prot: 3, slot: page(1000), runs: [2, 2, 6, 1] },
    { kind: "overlay", start: page(200), end: page(201), prot: 3, slot: page(5000), runs: [0, 1] },
    { kind: "anon", start: page(300), end: page(310), prot: 3 },
    { kind: "stack", start: page(400), end: page(410), prot: 3, slot: page(6000), runs: [0, 10] },
    { kind: "anon", start: page(500), end: page(510), prot: 3, slot: page(7000), runs: [0, 10], wipe: 1 },
  ],
} as unknown as Facts;

describe("a trace", () => {
  it("comes back as it was written", () => {
    fc.assert(
      fc.property(traces, (trace) => {
        expect(decodeTrace(encodeTrace(trace))).toEqual(trace);
      }),
    );
  });

  it("is refused when a bit of it changed or its end is missing", () => {
    fc.assert(
      fc.property(traces, fc.nat(), fc.integer({ min: 0, max: 7 }), (trace, at, bit) => {
        const bytes = encodeTrace(trace);
        const index = at % bytes.length;
        expect(decodeTrace(bytes.subarray(0, index))).toBeUndefined();
        bytes.writeUInt8(bytes.readUInt8(index) ^ (1 << bit), index);
        expect(decodeTrace(bytes)).toBeUndefined();
      }),
    );
  });

  it("is what the pager tells: addresses, and a bit for a write", () => {
    const payload = Buffer.alloc(16);
    payload.writeBigUInt64LE(page(7) | 1n, 0);
    payload.writeBigUInt64LE(page(3), 8);
    expect(accessesOf(payload)).toEqual([
      { address: page(7), write: true },
      { address: page(3), write: false },
    ]);
  });
});

describe("an installation", () => {
  it("takes what the image shares from its base's page space, and says so in the plan", () => {
    const shared = {
      regions: [
        { kind: "base", start: page(100), end: page(110), prot: 3, slot: page(1000), runs: [0, 10] },
        { kind: "anon", start: page(110), end: page(120), prot: 3, slot: page(1000), runs: [0, 10] },
      ],
    } as unknown as Facts;
    const what = installationOf(
      shared,
      [101, 111].map((number) => ({ address: page(number), write: false })),
    );
    expect(what.copies).toEqual([
      { address: page(101), pages: 1, from: page(1001) | ABI.PAGE_FROM_BASE, at: 0 },
      { address: page(111), pages: 1, from: page(1001), at: 4096 },
    ]);
    const plan = encodePagePlan(shared, "parallel", what);
    const from = (index: number): bigint =>
      readStructBig(plan, structBytes("page_plan") + index * structBytes("page_range"), "page_range", "from");
    expect([0, 1, 2, 3].map(from)).toEqual([
      page(1000) | ABI.PAGE_FROM_BASE,
      page(1000),
      page(1001) | ABI.PAGE_FROM_BASE,
      page(1001),
    ]);
  });

  const touched = [6, 3, 2, 200, 7].map((number) => ({ address: page(number < 100 ? 100 + number : number), write: false }));

  it("is the traced pages in order of address: runs of the page space, and zeros between them", () => {
    expect(installationOf(facts, touched)).toEqual({
      copies: [
        { address: page(102), pages: 2, from: page(1002), at: 0 },
        { address: page(106), pages: 1, from: page(1006), at: 8192 },
        { address: page(200), pages: 1, from: page(5000), at: 12288 },
      ],
      zeros: [{ address: page(107), pages: 1 }],
      bytes: 16384,
    });
  });

  it("leaves out what the pager does not bring: stacks, memory that held nothing or is wiped, and what is no memory of the image", () => {
    const elsewhere = [305, 405, 505, 900].map((number) => ({ address: page(number), write: true }));
    expect(installationOf(facts, elsewhere)).toEqual(NOTHING_INSTALLED);
  });

  it("becomes a plan: registered regions, then copies, then zeros", () => {
    const plan = encodePagePlan(facts, "direct", installationOf(facts, touched));
    const field = (name: string): number => readStruct(plan, 0, "page_plan", name);
    expect([field("magic"), field("mode"), field("set_bytes")]).toEqual([ABI.PAGE_PLAN_MAGIC, ABI.PAGE_DIRECT, 16384]);
    expect([field("segments"), field("copies"), field("zeros")]).toEqual([2, 3, 1]);
    const range = (index: number): bigint[] =>
      ["address", "bytes", "from", "at"].map((name) =>
        readStructBig(plan, structBytes("page_plan") + index * structBytes("page_range"), "page_range", name),
      );
    expect(plan.length).toBe(structBytes("page_plan") + 6 * structBytes("page_range"));
    expect(range(0)).toEqual([page(100), page(10), page(1000), 0n]);
    // An overlay stands for a file.
    expect(range(1)).toEqual([page(200), page(1), page(5000), 1n]);
    expect(range(3)).toEqual([page(106), page(1), page(1006), 8192n]);
    expect(range(5)).toEqual([page(107), page(1), 0n, 0n]);
  });
});
