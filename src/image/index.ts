/** The image format: reading, writing, compiling. Touches no process. */
export * from "./compile.js";
export { compileFloor, FLOOR_STAMPS } from "./floor.js";
export { type Facts, factsSchema, storedPages } from "./facts.js";
export { type ImageInspection, inspectImage } from "./inspect.js";
export { BOOT_FD_BASE, BOOT_PASSES, CONTROL_FD, compileBase, compileBoot } from "./launch.js";
export { IMAGE_VERSION, type Manifest, type RawManifest, decodeManifest, encodeManifest } from "./manifest.js";
export type { Program } from "./program.js";
export * from "./store.js";
export * from "./working-set.js";
export { compileTime } from "./time.js";
