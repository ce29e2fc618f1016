import { spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { SOURCE_DIR } from "./testing.js";

/**
 * Two thaws of one image are two processes in the same state. Here they are two processes whose only source of randomness is a
 * counter that begins at a chosen number, so that they are equal until something makes them differ.
 */
const CLONE = `
  const crypto = require("crypto");
  const [, random0, randomAtThaw, entropy] = process.argv;
  let counter = Number(random0), draws = 0;
  crypto.randomFillSync = (buffer) => {
    draws++;
    const bytes = new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
    for (let i = 0; i < bytes.length; i++) bytes[i] = counter = (counter * 33 + 7) % 251;
    return buffer;
  };
  const uuidOptions = [];
  crypto.randomUUID = (options) => { uuidOptions.push(options?.disableEntropyCache === true); return "uuid"; };
  const unique = require(${JSON.stringify(`${SOURCE_DIR}node/unique.cjs`)});
  const vm = require("vm");
  unique.install();
  const contexts = [vm.createContext(), vm.createContext({ a: 1 })];
  const sources = [Math.random, ...contexts.map((c) => vm.runInContext("() => Math.random()", c)),
    vm.runInNewContext("() => Math.random()"), new vm.Script("() => Math.random()").runInNewContext({})];
  const sample = () => sources.map((random) => [random(), random(), random()]);
  const before = sample();
  if (entropy !== "none") { counter = Number(randomAtThaw); unique.renew({ id: "", entropy, pid: 1, generation: 0 }); }
  const after = sample();
  draws = 0;
  for (let i = 0; i < 10; i++) crypto.randomInt(1000);
  const drawsForInts = draws;
  for (let i = 0; i < 3; i++) crypto.randomUUID();
  console.log(JSON.stringify({ before, after, drawsForInts, uuidOptions }));
`;

interface Clone {
  before: number[][];
  after: number[][];
  drawsForInts: number;
  uuidOptions: boolean[];
}

function clone(random0: number, randomAtThaw: number, entropy: string): Clone {
  const { stdout, stderr } = spawnSync(process.execPath, ["-e", CLONE, String(random0), String(randomAtThaw), entropy], {
    encoding: "utf8",
  });
  if (stdout === "") throw new Error(stderr);
  return JSON.parse(stdout) as Clone;
}

const ONE = "11".repeat(32);
const TWO = `${"11".repeat(31)}12`;

/** Counts the generators of which two clones drew the same. */
function equalSources(a: number[][], b: number[][]): number {
  return a.filter((numbers, i) => JSON.stringify(numbers) === JSON.stringify(b[i])).length;
}

describe("two clones in the same state", () => {
  it("draw the same for ever when nothing is renewed", () => {
    const [a, b] = [clone(1, 1, "none"), clone(1, 1, "none")];
    expect(equalSources(a.before, b.before)).toBe(5);
    expect(equalSources(a.after, b.after)).toBe(5);
  });

  it("draw the same when both the server's and the system's entropy are the same", () => {
    expect(equalSources(clone(1, 2, ONE).after, clone(1, 2, ONE).after)).toBe(5);
  });

  it("differ in every context by one byte of the server's entropy", () => {
    const [a, b] = [clone(1, 2, ONE), clone(1, 2, TWO)];
    expect(equalSources(a.before, b.before)).toBe(5);
    expect(equalSources(a.after, b.after)).toBe(0);
  });

  it("differ in every context by the system's entropy alone", () => {
    expect(equalSources(clone(1, 2, ONE).after, clone(1, 3, ONE).after)).toBe(0);
  });

  it("leave the sequence that they were on", () => {
    expect(equalSources(clone(1, 1, "none").after, clone(1, 2, ONE).after)).toBe(0);
  });

  it("keep no random bytes ahead for randomInt and randomUUID", () => {
    const { drawsForInts, uuidOptions } = clone(1, 2, ONE);
    expect(drawsForInts).toBeGreaterThanOrEqual(10);
    expect(uuidOptions).toEqual([true, true, true]);
  });

  it("draw numbers that are spread evenly over 53 bits of [0, 1)", () => {
    const script = `
      require(${JSON.stringify(`${SOURCE_DIR}node/unique.cjs`)}).install();
      const buckets = new Array(64).fill(0), bits = new Array(53).fill(0); let n = 200000, out = 0;
      for (let i = 0; i < n; i++) { const x = Math.random(); if (!(x >= 0 && x < 1)) out++; buckets[Math.floor(x * 64)]++; let y = BigInt(x * 2 ** 53); for (let b = 0; b < 53; b++) if ((y >> BigInt(b)) & 1n) bits[b]++; }
      console.log(JSON.stringify({ out, chi: buckets.reduce((s, c) => s + (c - n / 64) ** 2 / (n / 64), 0), worstBit: Math.max(...bits.map((b) => Math.abs(b / n - 0.5))) }));`;
    const seen = JSON.parse(spawnSync(process.execPath, ["-e", script], { encoding: "utf8" }).stdout);
    expect(seen.out).toBe(0);
    expect(seen.chi).toBeLessThan(63 + 6 * Math.sqrt(2 * 63)); // six standard deviations
    expect(seen.worstBit).toBeLessThan(6 * (0.5 / Math.sqrt(200_000)));
  });
});

describe("random bytes that a library asked for before a thaw", () => {
  it("are others when they come after it, and what somebody else asked for comes as it was drawn", () => {
    const script = `
      const crypto = require("crypto"), waiting = [];
      crypto.randomBytes = (size, callback) => void waiting.push(() => callback(null, Buffer.alloc(size)));
      const kept = require(${JSON.stringify(`${SOURCE_DIR}node/kept.cjs`)});
      kept.install();
      const got = {}, changed = (name) => (_, bytes) => { got[name] = bytes.some((byte) => byte !== 0); };
      function Base64Id() {}
      Base64Id.prototype.getRandomBytes = (name) => crypto.randomBytes(4096, changed(name));
      const library = new Base64Id(), own = () => crypto.randomBytes(4096, changed("own"));
      library.getRandomBytes("before"); waiting.pop()();
      library.getRandomBytes("across"); own();
      kept.renew();
      for (const deliver of waiting) deliver();
      console.log(JSON.stringify(got));`;
    const { stdout, stderr } = spawnSync(process.execPath, ["-e", script], { encoding: "utf8" });
    expect(stderr).toBe("");
    expect(JSON.parse(stdout)).toEqual({ before: false, across: true, own: false });
  });
});
