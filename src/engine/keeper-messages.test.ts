import { describe, expect, it } from "vitest";
import { ABI_CONSTANTS as ABI, readStruct, readStructBig, structBytes, writeStruct } from "../linux/abi.js";
import { decodePaged, decodePrefetched, encodePagedBy, encodePrefetch } from "./keeper-messages.js";

const RANGE = structBytes("prefetch_range");

describe("a prefetch", () => {
  it("is cut into messages that the keeper takes, in order", () => {
    const count = ABI.PREFETCH_RANGES_MAX * 2 + 1;
    const payloads = encodePrefetch(
      Array.from({ length: count }, (_, index) => ({ file: index + 1, offset: BigInt(index) * 2n ** 40n, bytes: 4096 * index })),
    );
    expect(payloads.map(({ length }) => length / RANGE)).toEqual([ABI.PREFETCH_RANGES_MAX, ABI.PREFETCH_RANGES_MAX, 1]);
    const last = payloads.at(-1) ?? Buffer.alloc(0);
    expect(readStruct(last, 0, "prefetch_range", "file")).toBe(count);
    expect(readStructBig(last, 0, "prefetch_range", "offset")).toBe(BigInt(count - 1) * 2n ** 40n);
    expect(readStruct(last, 0, "prefetch_range", "bytes")).toBe(4096 * (count - 1));
    expect(encodePrefetch([])).toEqual([]);
  });

  it("tells what was not cached, or that nobody can say", () => {
    const payload = Buffer.alloc(structBytes("prefetched"));
    writeStruct(payload, 0, "prefetched", { us: 80, pages: 12 });
    expect(decodePrefetched(payload)).toEqual({ us: 80, pages: 12 });
    writeStruct(payload, 0, "prefetched", { us: 80, pages: -1 });
    expect(decodePrefetched(payload).pages).toBe(-1);
  });
});

it("what fills a memory is told by file ids, and what was done comes back", () => {
  const by = encodePagedBy({ plan: 4, pages: 5, set: 6, base: 7 });
  expect(["plan", "pages", "set", "base"].map((name) => readStruct(by, 0, "paged_by", name))).toEqual([4, 5, 6, 7]);
  const report = Buffer.alloc(structBytes("paged_report"));
  writeStruct(report, 0, "paged_report", { read_us: 1, install_us: 2, pages: 3, regions: 4, direct: 1 });
  expect(decodePaged(report)).toEqual({ readUs: 1, installUs: 2, pages: 3, regions: 4, direct: true });
});
