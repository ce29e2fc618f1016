/** Heat, in words for people. */
import type { CodeHeat } from "../engine/types.js";
import type { FunctionView } from "../gateway/index.js";

/** `43 of 60 functions optimised`: those in the fastest tier that any has reached. */
export function codeHeatText({ functions, tiers }: CodeHeat): string {
  if (functions === 0) return "no functions to look at";
  const reached = Object.entries(tiers).filter(([, count]) => count > 0);
  const fastest = reached.at(-1);
  if (fastest === undefined) return `none of ${functions} functions called`;
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
