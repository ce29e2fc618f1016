/** Heat, in words for people. */
import type { CodeHeat } from "../engine/types.js";
import type { HeatStatus } from "../platform/types.js";

/** `43 of 60 functions optimised`: those in the fastest tier. */
export function codeHeatText({ functions, tiers }: CodeHeat): string {
  const fastest = Object.entries(tiers).at(-1);
  if (functions === 0 || fastest === undefined) return "no functions to look at";
  const [tier, count] = fastest;
  return `${count} of ${functions} functions ${tier}`;
}

/** The heat of the image that is thawed next, and what becomes of a warm-up. */
export function heatText(heat: number, status: HeatStatus | undefined): string {
  if (status === undefined || status.state === "done") return String(heat);
  return `${heat} (${status.state === "running" ? "warming up" : "warm-up failed"})`;
}
