/** The image format: reading, writing, compiling. Touches no process. */
export * from "./compile.js";
export * from "./compile-advice.js";
export {
  compileMemory,
  compilePrefault,
  compileRuntime,
  isMemory,
  isRead,
  isRuntimeFile,
  type PageSource,
  RESUME_PASSES,
  runtimeKey,
  STAMPS,
  sparesFor,
  THAW_PASSES,
} from "./compile-memory.js";
export { PARK_PASSES, type TouchTracking, trackTouches } from "./compile-recording.js";
export { type Facts, type FileIdentity, factsSchema, type Region, storedPages } from "./facts.js";
export { expectedFaults, type FaultModel, faultModel, type PresentRuns, SetMap } from "./fault-model.js";
export { compileFloor, FLOOR_STAMPS } from "./floor.js";
export { type ImageInspection, inspectImage, type RecentStarts, type WorkingSetInspection } from "./inspect.js";
export { BOOT_FD_BASE, BOOT_PASSES, CONTROL_FD, compileBase, compileBoot } from "./launch.js";
export {
  decodeManifest,
  decodeRawManifest,
  encodeManifest,
  IMAGE_VERSION,
  type Manifest,
  type RawManifest,
  specSchema,
} from "./manifest.js";
export * from "./merge.js";
export { BASE, classify, type FileRange, PAGES, type PageClasses, packedRanges, prefetchRanges } from "./prefetch.js";
export { type Program, type ProgramBuilder, passed } from "./program.js";
export * from "./reap-set.js";
export { mayResumeAhead } from "./run-ahead.js";
export { writtenAnywhere } from "./spread.js";
export * from "./store.js";
export { compileTime } from "./time.js";
export * from "./working-set.js";
