/** Heat, in words for people. */
import type { CodeHeat } from "../engine/types.js";
import type { FunctionView } from "../gateway/index.js";

/** `43 of 60 functions optimised`: those in the fastest tier. */
export function codeHeatText({ functions, tiers }: CodeHeat): string {
  const fastest = Object.entries(tiers).at(-1);
  if (functions === 0 || fastest === undefined) return "no functions to look at";
  const [tier, count] = fastest;
  return `${count} of ${functions} functions ${tier}`;
}

/** The heat of the image that is thawed next, and what goes on about hotter ones. */
export function heatText({ image: { image, heat }, warmUp }: Pick<FunctionView, "image" | "warmUp">): string {
  if (image === undefined) return "-";
  if (heat === undefined || heat.state === "done") return String(image.heat);
  // The warm-up events come first; while they are not over, it is them.
  const isWarmUp = warmUp !== undefined && heat.warmUp !== "done";
  if (heat.state === "running") return `${image.heat} (${isWarmUp ? "warming up" : "learning"})`;
  return `${image.heat} (${isWarmUp ? "warm-up" : "learning"} failed)`;
}
