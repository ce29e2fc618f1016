import { describe, expect, it } from "vitest";
import { mayResumeAhead } from "./run-ahead.js";
import { parsedFacts, sampleFacts } from "./testing.js";

type RawFacts = ReturnType<typeof sampleFacts>;
/** Places in the kernel's struct user_regs_struct. */
const PLACES = { rax: 10, rdi: 14 } as const;
const READ = 0;
const READV = 19;
const NANOSLEEP = 35;

function thread(number: number, values: Partial<Record<keyof typeof PLACES, number | bigint>>): RawFacts["threads"][number] {
  const registers = Buffer.alloc(216);
  for (const [name, value] of Object.entries(values))
    registers.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)), PLACES[name as keyof typeof PLACES] * 8);
  const [sample] = sampleFacts().threads;
  if (sample === undefined) throw new Error("the sample has no thread");
  return { ...sample, number, regs: registers.toString("hex") };
}

const inRead = thread(1, { rax: READ, rdi: 3 });
const asleep = { ...thread(2, {}), sleeps: true };
const quiet: Partial<RawFacts> = { threads: [inRead, asleep], descriptors: [] };
const may = (overrides: Partial<RawFacts>): boolean => mayResumeAhead(parsedFacts({ ...quiet, ...overrides }));

const timer = (ticks: number, seconds: number, nanos: number): RawFacts["descriptors"][number] => ({
  fd: 9,
  flags: 0,
  pos: 0,
  kind: "timerfd",
  clock: 1,
  ticks,
  value: [seconds, nanos],
  interval: [0, 0],
});

describe("a process that is resumed before there is a request for it", () => {
  it("waits in the runtime's read, all its other threads until they are woken", () => {
    expect(may({})).toBe(true);
    expect(may({ threads: [inRead] })).toBe(true);
    expect(may({ threads: [thread(1, { rax: READV, rdi: 3 })] })).toBe(true);
    expect(may({ descriptors: [timer(0, 0, 0)] })).toBe(true);
  });

  it.each<[string, Partial<RawFacts>]>([
    ["its main thread reads something else", { threads: [thread(1, { rax: READ, rdi: 4 }), asleep] }],
    ["its main thread does something else", { threads: [thread(1, { rax: NANOSLEEP, rdi: 3 }), asleep] }],
    ["another thread does not sleep until it is woken", { threads: [inRead, asleep, thread(3, {})] }],
    ["a timer descriptor is armed", { descriptors: [timer(0, 5, 0)] }],
    ["a timer descriptor is about to fire", { descriptors: [timer(0, 0, 1)] }],
    ["a timer descriptor has fired", { descriptors: [timer(1, 0, 0)] }],
    [
      "an interval timer runs",
      {
        itimers: [
          [0, 0, 3, 0],
          [0, 0, 0, 0],
          [0, 0, 0, 0],
        ],
      },
    ],
  ])("does not exist when %s", (_why, overrides) => expect(may(overrides)).toBe(false));
});
