/** Numbers that whoever uses the platform as a library gives it, looked at before anything is opened; the command line checks its own. */
import { TIMER_MS_MAX } from "../base/clock.js";
import { ThawError } from "../base/errors.js";
import type { ParkedTargets, PlatformOptions } from "./types.js";

const COUNT_MAX = 100_000;

interface Range {
  readonly min: number;
  readonly max: number;
  readonly whole?: true;
}

const count = (min: number): Range => ({ min, max: COUNT_MAX, whole: true });
const wait = (min: number): Range => ({ min, max: TIMER_MS_MAX });
const atLeast = (min: number): Range => ({ min, max: Number.POSITIVE_INFINITY });

const RANGES = {
  maxInstances: count(1),
  genericHusks: count(0),
  runtimeHusks: count(0),
  keepWarmMs: atLeast(0),
  keepHibernatedMs: atLeast(0),
  keepAliveMs: atLeast(0),
  memoryBudgetBytes: atLeast(1),
  hibernateBackoffMs: wait(1),
  heatBackoffMs: wait(1),
  drainMs: wait(0),
} as const satisfies Partial<Record<keyof PlatformOptions, Range>>;
const PARKED = { runtime: count(0), image: count(0), prefaulted: count(0) } as const satisfies Partial<
  Record<keyof ParkedTargets, Range>
>;

/** INVALID_ARGUMENT names each number that cannot be. */
export function checkOptions(options: PlatformOptions): void {
  const wrong = [...outside(RANGES, options), ...outside(PARKED, options.parked ?? {}, "parked.")];
  if (wrong.length === 0) return;
  throw new ThawError("INVALID_ARGUMENT", {
    what: "The platform cannot be opened",
    why: wrong.join("; "),
    fix: "Leave out what shall have its default (src/platform/types.ts)",
  });
}

function outside(ranges: Readonly<Record<string, Range>>, given: object, prefix = ""): string[] {
  const values = given as Readonly<Record<string, unknown>>;
  return Object.entries(ranges).flatMap(([name, { min, max, whole }]) => {
    const value = values[name];
    if (value === undefined) return [];
    const fits = typeof value === "number" && value >= min && value <= max && (whole === undefined || Number.isInteger(value));
    if (fits) return [];
    const upTo = max === Number.POSITIVE_INFINITY ? `at least ${min}` : `from ${min} to ${max}`;
    return [`${prefix}${name} is ${String(value)}, and it must be a ${whole === undefined ? "number" : "whole number"} ${upTo}`];
  });
}
