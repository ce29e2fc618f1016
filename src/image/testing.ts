/** Manifests for tests: one that is small and whole, and arbitrary ones. */
import fc from "fast-check";
import { type Facts, factsSchema } from "./facts.js";
import type { RawManifest } from "./manifest.js";

type RawFacts = RawManifest["facts"];

const hexText = (value: bigint): string => `0x${value.toString(16)}`;
const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map(hexText);
const pageAddress = fc.bigInt({ min: 1n, max: 2n ** 35n - 1n }).map((page) => hexText(page * 4096n));
const count = fc.nat();
const hexBytes = (bytes: number): fc.Arbitrary<string> =>
  fc.uint8Array({ minLength: bytes, maxLength: bytes }).map((value) => Buffer.from(value).toString("hex"));
const someBytes = fc.uint8Array({ maxLength: 40 }).map((value) => Buffer.from(value).toString("hex"));
const path = fc.string({ unit: "grapheme", maxLength: 20 }).map((text) => `/${text.replaceAll("\0", "")}`);

const FRAME = { extendedBytes: 836, stateBytes: 832, features: "0x7" };

/** A process with one more thread, a mapping of each kind, and the descriptors of a runtime. */
export function sampleFacts(overrides: Partial<RawFacts> = {}): RawFacts {
  const thread = (number: number, name: string): RawFacts["threads"][number] => ({
    number,
    name,
    sleeps: false,
    regs: "00".repeat(216),
    xstate: "00".repeat(832),
    sigmask: "0x0",
    altstack: ["0x0", "0x2", "0x0"],
    robustList: "0x7f0000001000",
    robustBytes: "0x18",
    rseq: "0x7f0000002000",
    rseqBytes: 32,
    rseqSignature: 0x53053053,
    tidAddress: "0x7f0000003000",
    tidWord: "0x7f0000003000",
  });
  const identity = { inode: "0x1234", size: "0x8000", mtimeS: 1_700_000_000, mtimeNs: 5, ctimeS: 1_700_000_001, ctimeNs: 6 };
  return {
    frame: FRAME,
    clock: { monotonicNs: "0x10", boottimeNs: "0x20", realtimeNs: "0x30" },
    umask: 18,
    sigactions: [{ signal: 2, handler: "0x401000", flags: "0x4000000", restorer: "0x402000", mask: "0x0" }],
    itimers: [
      [0, 0, 0, 0],
      [0, 0, 0, 0],
      [0, 0, 0, 0],
    ],
    mm: {
      startCode: "0x400000",
      endCode: "0x401000",
      startData: "0x402000",
      endData: "0x403000",
      startBrk: "0x500000",
      brk: "0x510000",
      startStack: "0x7ffe00001000",
      argStart: "0x7ffe00001000",
      argEnd: "0x7ffe00001010",
      envStart: "0x7ffe00001010",
      envEnd: "0x7ffe00001020",
    },
    rlimits: Array.from({ length: 16 }, () => ["0x400", "0x400"] as [string, string]),
    cwd: "/var/task",
    threads: [thread(300, "main"), thread(301, "worker")],
    descriptors: [
      { fd: 0, flags: 0, pos: 0, kind: "device", path: "/dev/null" },
      { fd: 1, flags: 1, pos: 0, kind: "pipe", inode: 7, end: "write", capacity: 65536 },
      { fd: 2, flags: 1, pos: 0, kind: "same", as: 1 },
      { fd: 3, flags: 0o2000002, pos: 0, kind: "control" },
    ],
    tmp: [
      { path: "/tmp/dir", mode: 0o755, mtimeS: 1, mtimeNs: 2, type: "directory" },
      { path: "/tmp/dir/file", mode: 0o644, mtimeS: 1, mtimeNs: 2, type: "file", at: 0, bytes: 5 },
    ],
    pageSpaceBytes: "0x30000000",
    guards: [],
    digest: "0xabc",
    regions: [
      { kind: "file", start: "0x400000", end: "0x402000", prot: 5, offset: "0x0", path: "/usr/bin/node", identity },
      { kind: "overlay", start: "0x401000", end: "0x402000", prot: 3, slot: "0x0", runs: [0, 1] },
      { kind: "heap", start: "0x500000", end: "0x510000", prot: 3, slot: "0x10000000", runs: [0, 2, 5, 1] },
      { kind: "anon", start: "0x7f0000000000", end: "0x7f0000010000", prot: 3 },
      { kind: "stack", start: "0x7ffe00000000", end: "0x7ffe00002000", prot: 3, slot: "0x20000000", runs: [1, 1] },
    ],
    notes: [],
    ...overrides,
  };
}

/** As the compiler sees it. */
export function parsedFacts(overrides: Partial<RawFacts> = {}): Facts {
  return factsSchema.parse(sampleFacts(overrides));
}

/** A whole manifest. */
export function sampleManifest(overrides: Partial<RawManifest> = {}): RawManifest {
  return {
    id: "11111111-2222-3333-4444-555555555555",
    createdMs: 1_700_000_000_000,
    generation: 0,
    heat: 1,
    spec: {
      name: "hello",
      version: "1",
      runtime: "nodejs20.x",
      codeDir: "/code",
      handler: "index.handler",
      memoryMb: 128,
      timeoutMs: 3000,
      env: {},
      tmpMb: 512,
    },
    lineagePids: [300],
    fingerprint: { kernel: "6.18.0 #1", cpu: "00".repeat(32), bootId: "boot" },
    report: { hygieneMs: 1, stoppedMs: 2, totalMs: 3, anonymousBytes: 4096, storedBytes: 4096, notes: [] },
    tmpBytes: 0,
    tmpSha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    facts: sampleFacts(),
    ...overrides,
  };
}

const identityArbitrary = fc.record({
  inode: u64,
  size: u64,
  mtimeS: fc.integer(),
  mtimeNs: count,
  ctimeS: fc.integer(),
  ctimeNs: count,
});
const regionArbitrary = fc.record(
  {
    kind: fc.constantFrom("anon", "heap", "stack", "file", "shared", "overlay", "vdso", "common", "backed" as const),
    start: pageAddress,
    end: pageAddress,
    prot: fc.integer({ min: 0, max: 7 }),
    wipe: fc.constant(1 as const),
    offset: u64,
    path,
    fd: count,
    writes: fc.constant(1 as const),
    identity: identityArbitrary,
    slot: u64,
    runs: fc.array(count, { maxLength: 12 }),
  },
  { requiredKeys: ["kind", "start", "end", "prot"] },
);
const common = { fd: count, flags: count, pos: count };
const descriptorArbitrary = fc.oneof(
  fc.record({ ...common, kind: fc.constant("control" as const) }),
  fc.record({ ...common, kind: fc.constant("same" as const), as: count }),
  fc.record({
    ...common,
    kind: fc.constant("pipe" as const),
    inode: count,
    end: fc.constantFrom("read", "write" as const),
    capacity: fc.integer(),
    bytes: someBytes,
  }),
  fc.record({ ...common, kind: fc.constant("eventfd" as const), count: u64, semaphore: count }),
  fc.record({
    ...common,
    kind: fc.constant("epoll" as const),
    entries: fc.array(fc.record({ fd: count, file: count, events: count, data: u64 }), { maxLength: 4 }),
  }),
  fc.record({ ...common, kind: fc.constant("unix" as const), type: count, inode: count, peer: count, bytes: someBytes }),
);
const threadArbitrary = fc.record({
  number: count,
  name: fc.string({ maxLength: 15 }),
  sleeps: fc.boolean(),
  regs: hexBytes(216),
  xstate: someBytes,
  sigmask: u64,
  altstack: fc.tuple(u64, u64, u64),
  robustList: u64,
  robustBytes: u64,
  rseq: u64,
  rseqBytes: count,
  rseqSignature: count,
  tidAddress: u64,
  tidWord: u64,
});
const factsArbitrary: fc.Arbitrary<RawFacts> = fc
  .record({
    regions: fc.array(regionArbitrary, { maxLength: 6 }),
    guards: fc.array(fc.tuple(u64, u64), { maxLength: 2 }),
    descriptors: fc.array(descriptorArbitrary, { maxLength: 6 }),
    threads: fc.array(threadArbitrary, { minLength: 1, maxLength: 3 }),
    cwd: path,
    notes: fc.array(fc.string({ unit: "grapheme" }), { maxLength: 3 }),
    pageSpaceBytes: u64,
    digest: u64,
  })
  .map((parts) => sampleFacts(parts));

/** Any manifest that the schema admits: names in any script, any order of kinds, any 64-bit numbers. */
export const manifestArbitrary: fc.Arbitrary<RawManifest> = fc
  .record({
    id: fc.uuid(),
    createdMs: fc.integer({ min: 0 }),
    generation: count,
    heat: count,
    code: fc.option(
      fc.record(
        {
          functions: count,
          tiers: fc.dictionary(fc.constantFrom("interpreted", "optimised"), count, { noNullPrototype: true }),
          codeBytes: count,
        },
        { requiredKeys: ["functions", "tiers"] },
      ),
      { nil: undefined },
    ),
    lineagePids: fc.array(fc.integer({ min: 1 }), { maxLength: 5 }),
    env: fc.dictionary(
      fc.string({ maxLength: 8 }).filter((name) => name !== "__proto__"),
      fc.string({ unit: "binary", maxLength: 20 }),
      { noNullPrototype: true },
    ),
    facts: factsArbitrary,
  })
  .map(({ env, ...parts }) => sampleManifest({ ...parts, spec: { ...sampleManifest().spec, env } }));
