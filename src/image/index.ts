/** The image format: reading, writing, compiling. Touches no process. */
export { CONTROL_FD } from "./channels.js";
export * from "./compile.js";
export * from "./compile-advice.js";
export {
  compileMemory,
  compilePrefault,
  compileRuntime,
  isMemory,
  isRead,
  isRuntimeFile,
  RESUME_PASSES,
  runtimeKey,
  STAMPS,
  sparesFor,
  THAW_PASSES,
} from "./compile-memory.js";
export { PARK_PASSES, trackTouches } from "./compile-recording.js";
export { findDatabases } from "./databases.js";
export { type Facts, type FileIdentity, isFile, parseFacts, type Region, storedPages } from "./facts.js";
export { expectedFaults, type FaultModel, faultModel, type PresentRuns, SetMap } from "./fault-model.js";
export { compileFloor, FLOOR_STAMPS } from "./floor.js";
export { type ImageInspection, inspectImage } from "./inspect.js";
export { BOOT_FD_BASE, BOOT_PASSES, compileBase, compileBoot } from "./launch.js";
export {
  decodeManifest,
  decodeRawManifest,
  encodeManifest,
  type RawManifest,
  specSchema,
} from "./manifest.js";
export * from "./merge.js";
export * from "./page-runs.js";
export { BASE, type FileRange, PAGES, packedRanges, prefetchRanges, samplePages } from "./prefetch.js";
export { type Program, type ProgramBuilder, passed } from "./program.js";
export * from "./reap-set.js";
export { mayResumeAhead } from "./run-ahead.js";
export { writtenAnywhere } from "./spread.js";
export * from "./store.js";
export { compileTime } from "./time.js";
export * from "./working-set.js";
