/** How large the large measurements are. The defaults are what is promised; smaller ones, for a quick look, are asked for in the environment. */
import { ThawError } from "../base/errors.js";

const DEFAULTS = {
  /** Live idle instances. */
  THAW_BENCH_INSTANCES: 2_000,
  /** Functions of which only an image exists. */
  THAW_BENCH_FUNCTIONS: 10_000,
  /** Distinct functions that are asked at once. */
  THAW_BENCH_SPIKE: 200,
} as const;

/** The number for this run. INVALID_ARGUMENT when the environment holds something else than a whole number from 1 on. */
export function scale(name: keyof typeof DEFAULTS, env: NodeJS.ProcessEnv = process.env): number {
  const text = env[name];
  if (text === undefined) return DEFAULTS[name];
  if (/^[1-9]\d{0,5}$/.test(text)) return Number(text);
  throw new ThawError("INVALID_ARGUMENT", {
    what: `${name} cannot be ${JSON.stringify(text)}`,
    why: "it must be a whole number from 1 to 999,999",
    fix: `leave it out for ${DEFAULTS[name]}`,
  });
}
