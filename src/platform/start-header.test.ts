import { describe, expect, it } from "vitest";
import type { StartResult } from "../engine/types.js";
import { parseStartHeader, startHeader, traceHeader } from "./start-header.js";
import type { InvokeOutcome } from "./types.js";

const THAW: StartResult = {
  kind: "thaw",
  loader: "splice",
  generation: 2,
  heat: 1100,
  us: 1839.6,
  waitUs: 0,
  phases: [],
  prefetchedPages: 7,
};

describe("X-Thaw-Start", () => {
  it("names kind, loader, generation and microseconds", () => {
    expect(startHeader(THAW)).toBe("kind=thaw;loader=splice;generation=2;heat=1100;us=1840");
  });

  it("leaves out what a boot or a reuse does not have", () => {
    const start: StartResult = { kind: "boot", us: 90_000, waitUs: 0, phases: [], prefetchedPages: 0 };
    expect(startHeader(start)).toBe("kind=boot;us=90000");
  });

  it("tells the wait apart from the start", () => {
    expect(startHeader({ ...THAW, waitUs: 12.4 })).toBe("kind=thaw;loader=splice;generation=2;heat=1100;us=1840;wait=12");
  });

  it("names the fallback, in characters that a header may hold", () => {
    const header = startHeader({ ...THAW, fallback: 'the image "é" was\r\nX-Evil: 1' });
    expect(header).toMatch(/^[\x20-\x7e]+$/);
    expect(JSON.parse(header.slice(header.indexOf('"')))).toBe('the image "é" was\r\nX-Evil: 1');
  });

  it("cuts a reason of any length", () => {
    expect(startHeader({ ...THAW, fallback: "\u{1f9ca}".repeat(10_000) }).length).toBeLessThan(2100);
  });
});

it("X-Thaw-Start is read back, whatever the reason holds", () => {
  expect(parseStartHeader("kind=thaw;loader=splice;generation=0;us=1840;wait=12")).toEqual({
    kind: "thaw",
    loader: "splice",
    generation: 0,
    us: 1840,
    wait: 12,
  });
  expect(parseStartHeader('kind=boot;us=1;fallback="a;fallback=\\"b\\" \\u00e9"')).toEqual({
    kind: "boot",
    us: 1,
    fallback: 'a;fallback="b" é',
  });
});

it("X-Thaw-Trace holds phases, pages and memory as ASCII JSON", () => {
  const start: StartResult = { ...THAW, phases: [{ name: "map", us: 400 }], fallback: "naïve" };
  const outcome = {
    start,
    result: { handlerMs: 1, totalMs: 2, maxMemoryMb: 3 },
    pages: { written: 1, image: 2, file: 3, zero: 4 },
    memory: { privateBytes: 5, sharedBytes: 6 },
  } as InvokeOutcome;
  const header = traceHeader(outcome);
  expect(header).toMatch(/^[\x20-\x7e]+$/);
  expect(JSON.parse(header)).toEqual({
    start,
    pages: { written: 1, image: 2, file: 3, zero: 4 },
    memory: { privateBytes: 5, sharedBytes: 6 },
    handlerMs: 1,
    totalMs: 2,
    maxMemoryMb: 3,
  });
});
