import { describe, expect, it } from "vitest";
import { isThawError } from "../base/errors.js";
import { ABI_CONSTANTS as ABI, readStruct, readStructBig, structBytes } from "../linux/abi.js";
import { checkFacts, compileEquip, compileResume, compileThaw, fdBase } from "./compile.js";
import { compileMemory, compileRuntime, runtimeKey, sparesFor } from "./compile-memory.js";
import { compileBase, compileBoot } from "./launch.js";
import type { Program } from "./program.js";
import { parsedFacts, sampleFacts } from "./testing.js";

const OP_BYTES = structBytes("program_op");

/** The operations of a program as `[kind, system call]`, in order. */
function operations({ bytes, labels }: Program): { kind: number; nr: number; args: bigint[]; label: string }[] {
  const at = readStruct(bytes, 0, "program_header", "ops_at");
  return labels.map((label, index) => ({
    kind: readStruct(bytes, at + index * OP_BYTES, "program_op", "kind"),
    nr: readStruct(bytes, at + index * OP_BYTES, "program_op", "nr"),
    args: Array.from({ length: 6 }, (_, argument) => readStructBig(bytes, at + index * OP_BYTES, "program_op", "args", argument)),
    label,
  }));
}

const CONTENTS = Buffer.from("hello");
const SYS_CAPSET = 126;
const SYS_GETRANDOM = 318;
const SYS_MMAP = 9;
const SYS_EXECVE = 59;
const MAP_SHARED_FIXED_ANONYMOUS = 0x31n;

const SYS_DUP3 = 292;
const RUNS = [{ address: 0x500000n, pages: 1 }];
const facts = parsedFacts();

/** Seconds and nanoseconds. */
type Time = [number, number];

describe("a compiled image", () => {
  it("gives up all capabilities before any thread is made, and before it resumes", () => {
    for (const program of [
      compileThaw(facts, { contents: CONTENTS, source: "lazy", runtime: true, prefetch: RUNS }),
      compileThaw(facts, { contents: CONTENTS, source: "eager", runtime: true }),
      compileEquip(facts, CONTENTS),
    ]) {
      const list = operations(program);
      const dropped = list.findIndex(({ kind, nr }) => kind === ABI.OP_SYSCALL && nr === SYS_CAPSET);
      const threads = list.findIndex(({ kind }) => kind === ABI.OP_THREAD || kind === ABI.OP_RESUME);
      expect(dropped).toBeGreaterThanOrEqual(0);
      expect(dropped).toBeLessThan(threads);
    }
  });

  it("seeds generators anew once their memory is there, and before any thread is made", () => {
    const seeded = parsedFacts({ seeds: [["0x500010", 2496]] });
    for (const program of [
      compileThaw(seeded, { contents: CONTENTS, source: "lazy", runtime: true, prefetch: RUNS }),
      compileEquip(seeded, CONTENTS),
    ]) {
      const list = operations(program);
      const seed = list.findIndex(({ kind, nr }) => kind === ABI.OP_SYSCALL && nr === SYS_GETRANDOM);
      expect(list[seed]?.args.slice(0, 3)).toEqual([0x500010n, 2496n, 0n]);
      expect(seed).toBeGreaterThan(list.findLastIndex(({ nr, label }) => nr === SYS_MMAP || label.startsWith("copy")));
      expect(seed).toBeLessThan(list.findIndex(({ kind }) => kind === ABI.OP_THREAD));
    }
  });

  it.each([
    ["lies in what cannot be written", "0x400100"],
    ["goes beyond its mapping", "0x50fff0"],
    ["lies nowhere", "0x10"],
  ])("is refused when what is to be seeded %s", (_what, at) => {
    expect(() => checkFacts(parsedFacts({ seeds: [[at, 2496]] }))).toThrow(/which were to be seeded anew/);
  });

  it("makes threads in the order of their numbers, and the main one as itself", () => {
    const [main, other] = sampleFacts().threads;
    if (main === undefined || other === undefined) throw new Error("the sample has one thread");
    const mixed = parsedFacts({ threads: [{ ...main, number: 4711 }, ...[40, 3, 7].map((number) => ({ ...other, number }))] });
    for (const [program, count] of [
      [compileThaw(mixed, { contents: CONTENTS, source: "lazy", runtime: false }), 4],
      [compileEquip(mixed, CONTENTS), 3],
    ] as const) {
      const states = operations(program).filter(({ kind }) => kind === ABI.OP_THREAD || kind === ABI.OP_RESUME);
      const numbers = states.map(({ args: [at = 0n] }) =>
        readStruct(program.bytes, Number(at - ABI.HUSK_PROGRAM_AT), "thread_state", "number"),
      );
      expect(numbers).toEqual([3, 7, 40, 0].slice(0, count));
    }
    expect(sparesFor(mixed)).toBe(6);
    expect(sparesFor(parsedFacts({ threads: [main, { ...other, number: 17 }] }))).toBe(16);
    expect(sparesFor(parsedFacts({ threads: [main, { ...other, number: 18 }, { ...other, number: 4400 }] }))).toBe(0);
    expect(sparesFor(parsedFacts({ threads: [main, { ...other, number: 5 }, { ...other, number: 3 }] }))).toBe(4);
    expect(sparesFor(parsedFacts({ threads: [{ ...main, number: 4711 }] }))).toBe(0);
  });

  it("sets every limit, behind the descriptors that they could forbid, and nothing behind the resume", () => {
    for (const program of [compileThaw(facts, { contents: CONTENTS, source: "lazy", runtime: false }), compileResume(facts)]) {
      const list = operations(program);
      expect(list.at(-1)?.kind).toBe(ABI.OP_RESUME);
      const limits = list.filter(({ kind }) => kind === ABI.OP_LIMIT);
      expect(limits.map(({ args }) => args[0])).toEqual(Array.from({ length: 16 }, (_, resource) => BigInt(resource)));
      const descriptors = list.findLastIndex(({ kind, nr }) => kind === ABI.OP_INSTALL || nr === SYS_DUP3);
      expect(descriptors).toBeGreaterThan(0);
      expect(descriptors).toBeLessThan(list.findIndex(({ kind }) => kind === ABI.OP_LIMIT));
    }
  });

  it.each([
    ["one that expired once, and no more", [0, 0], [0, 0], 1, [0, 0]],
    ["one that goes on", [0, 5], [0, 3], 7, [0, 3]],
    ["one that expired while it was looked at", [0, 5], [0, 0], 7, [0, 5]],
    ["one that was never armed", [0, 5], [0, 0], 0, [0, 0]],
  ] as [string, Time, Time, number, Time][])(
    "arms a timer descriptor, behind which it puts its count: %s",
    (_what, interval, value, ticks, armed) => {
      const timer = { fd: 9, flags: 0, pos: 0, kind: "timerfd" as const, clock: 1, ticks, value, interval };
      const withTimer = parsedFacts({ descriptors: [...sampleFacts().descriptors, timer] });
      const program = compileThaw(withTimer, { contents: CONTENTS, source: "lazy", runtime: false });
      const of = operations(program).filter(({ label }) => label.startsWith("timer on descriptor 9: "));
      expect(of.map(({ label }) => label.slice(23))).toEqual(ticks > 0 ? ["settime", "its count"] : ["settime"]);
      const at = Number((of[0]?.args[2] ?? 0n) - BigInt(ABI.HUSK_PROGRAM_AT));
      const times = [0, 8, 16, 24].map((offset) => Number(program.bytes.readBigInt64LE(at + offset)));
      expect(times).toEqual([...interval, ...armed]);
    },
  );

  it("gives each clone shared memory of its own, whose pages are read whatever the loader", () => {
    const region = {
      kind: "common" as const,
      start: "0x7f0000000000",
      end: "0x7f0000004000",
      prot: 1,
      slot: "0x200000",
      runs: [1, 2],
    };
    for (const source of ["lazy", "eager", "paged"] as const) {
      const list = operations(compileMemory(parsedFacts({ regions: [...sampleFacts().regions, region] }), source));
      const at = list.findIndex(({ label }) => label === "map shared memory");
      const [mapped, read, protect] = list.slice(at, at + 3);
      expect(mapped?.nr).toBe(SYS_MMAP);
      expect(mapped?.args.slice(0, 4)).toEqual([0x7f0000000000n, 0x4000n, 3n, MAP_SHARED_FIXED_ANONYMOUS]);
      expect(read).toMatchObject({
        label: "read common pages",
        args: expect.arrayContaining([0x7f0000001000n, 0x2000n, 0x201000n]),
      });
      expect(protect).toMatchObject({
        label: "protect shared memory",
        args: expect.arrayContaining([0x7f0000000000n, 0x4000n, 1n]),
      });
    }
  });

  it.each([
    ["in the runtime's read: not what calls have left below", 0, 3, 0x7ffe00001000n + 128n, [0x7ffe00001000n, 0x1000n]],
    [
      "in the runtime's read, with the red zone: as much of it as the pointer says",
      0,
      3,
      0x7ffe00001000n + 127n,
      [0x7ffe00000000n, 0x2000n],
    ],
    ["elsewhere: all that is stored", 202, 3, 0x7ffe00001800n, [0x7ffe00000000n, 0x2000n]],
    ["in another read: all that is stored", 0, 4, 0x7ffe00001800n, [0x7ffe00000000n, 0x2000n]],
    ["on a stack of its own: all that is stored", 0, 3, 0x7f0000000800n, [0x7ffe00000000n, 0x2000n]],
  ])("reads of the stack of a main thread that is %s", (_what, rax, rdi, rsp, read) => {
    const registers = Buffer.alloc(216);
    for (const [place, value] of [
      [10, rax],
      [14, rdi],
      [19, rsp],
    ] as const)
      registers.writeBigUInt64LE(BigInt(value), place * 8);
    const [main] = sampleFacts().threads;
    const stack = sampleFacts().regions.find(({ kind }) => kind === "stack");
    if (main === undefined || stack === undefined) throw new Error("the sample has no thread or no stack");
    const waiting = parsedFacts({
      threads: [{ ...main, regs: registers.toString("hex") }],
      regions: [{ ...stack, runs: [0, 2] }],
    });
    const reads = operations(compileMemory(waiting, "lazy")).filter(({ label }) => label === "read stack pages");
    expect(reads.map(({ args }) => args.slice(1, 3))).toEqual([read]);
  });

  it("asks each file for its identity before it maps it", () => {
    const list = operations(compileRuntime(parsedFacts()));
    expect(list.map(({ label }) => label)).toEqual([
      "open /usr/bin/node",
      "check that /usr/bin/node is unchanged",
      "map /usr/bin/node",
      "close /usr/bin/node",
    ]);
    expect(list[1]?.kind).toBe(ABI.OP_IDENTITY);
  });

  it("shares runtime husks exactly with images of the same files at the same places", () => {
    const key = (change: object): string => {
      const [file, ...others] = sampleFacts().regions;
      if (file === undefined) throw new Error("no region");
      return runtimeKey(compileRuntime(parsedFacts({ regions: [{ ...file, ...change }, ...others] })));
    };
    const same = key({});
    expect(runtimeKey(compileRuntime(parsedFacts({ notes: ["another image"] })))).toBe(same);
    const identity = sampleFacts().regions[0]?.identity;
    for (const change of [
      { start: "0x3ff000" },
      { prot: 4 },
      { offset: "0x1000" },
      { path: "/usr/bin/nodejs" },
      { identity: { ...identity, size: "0x9000" } },
      { identity: { ...identity, ctimeNs: 7 } },
    ]) {
      expect(key(change), JSON.stringify(change)).not.toBe(same);
    }
  });

  it("maps with MAP_FIXED only where the image was, never where the husk lives", () => {
    for (const source of ["lazy", "eager"] as const) {
      for (const { nr, args } of operations(compileMemory(parsedFacts(), source))) {
        if (nr !== 9) continue;
        const [start = 0n, bytes = 0n] = args;
        expect(start + bytes <= ABI.HUSK_ZONE_START || start >= ABI.HUSK_ZONE_END).toBe(true);
      }
    }
  });

  it("keeps the husk's descriptors above those of the image", () => {
    expect(fdBase(parsedFacts())).toBe(512);
    const descriptors = [...sampleFacts().descriptors, { fd: 700, flags: 0, pos: 0, kind: "device" as const, path: "/dev/null" }];
    expect(fdBase(parsedFacts({ descriptors }))).toBe(702);
  });
});

describe("facts that no program can bring back are refused with what is in the way", () => {
  const region = (change: object): object => ({
    kind: "anon",
    start: "0x7f1000000000",
    end: "0x7f1000001000",
    prot: 3,
    ...change,
  });
  const identity = { inode: "0x1", size: "0x1000", mtimeS: 0, mtimeNs: 0, ctimeS: 0, ctimeNs: 0 };
  it.each([
    [
      "memory where the husk lives",
      region({ start: `0x${ABI.HUSK_ZONE_START.toString(16)}`, end: `0x${(ABI.HUSK_ZONE_START + 4096n).toString(16)}` }),
      "lies where the husk lives",
    ],
    ["a file without identity", region({ kind: "file", path: "/usr/lib/x.so" }), "(/usr/lib/x.so) cannot be identified"],
    [
      "a deleted file",
      region({ kind: "file", path: "/var/task/x.node (deleted)", identity }),
      "(/var/task/x.node (deleted)) maps a deleted file",
    ],
  ])("%s", (_title, change, what) => {
    let refused: unknown;
    try {
      checkFacts(parsedFacts({ regions: [...sampleFacts().regions, change as never] }));
    } catch (error) {
      refused = error;
    }
    expect(isThawError(refused, "FREEZE_REFUSED")).toBe(true);
    expect(String(refused)).toContain(what);
  });

  it("and whole ones are not", () => {
    expect(() => checkFacts(parsedFacts())).not.toThrow();
  });
});

describe("a boot", () => {
  it("is without new privileges, bounded capabilities and with the filter before anything of the function is known", () => {
    const labels = operations(compileBase()).map(({ label }) => label);
    expect(labels.slice(-3)).toEqual(["no new privileges", "dumpable", "seccomp filter"]);
    expect(labels.filter((label) => label.startsWith("bounding set"))).toHaveLength(64);
  });

  it("gives up all capabilities before it executes the interpreter, and keeps no descriptor of the husk", () => {
    const list = operations(compileBoot({ argv: ["/usr/bin/node", "x.cjs"], env: { A: "1" } }));
    const at = (nr: number): number => list.findIndex((one) => one.nr === nr);
    expect(at(SYS_CAPSET)).toBeGreaterThan(0);
    expect(at(SYS_CAPSET)).toBeLessThan(at(SYS_EXECVE));
    expect(list.at(-1)?.nr).toBe(SYS_EXECVE);
    expect(list.findIndex(({ label }) => label === "close the husk's descriptors")).toBeGreaterThan(0);
  });
});
