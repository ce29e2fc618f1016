/** The door of the platform. */
export { fixedPoints } from "./fixed-points.js";
export { histogramPolicy } from "./histogram-policy.js";
export { openPlatform } from "./platform.js";
export { fixedPolicy } from "./policy.js";
export { pronghorn } from "./pronghorn.js";
export * from "./types.js";
