/** Boot, freeze, thaw. See {@link Engine} for what it offers. */
import { type EngineOptions, LocalEngine } from "./engine.js";
import type { Engine } from "./types.js";

export type { EngineOptions } from "./engine.js";
export * from "./types.js";

/**
 * Opens the engine of this machine: starts the keeper, probes cgroups and interpreters, sweeps what a killed server left.
 * @throws ThawError NATIVE_MISSING, KEEPER_FAILED, SANDBOX_FAILED
 */
export function openEngine(options: EngineOptions): Promise<Engine> {
  return LocalEngine.open(options);
}
