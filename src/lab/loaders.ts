/** The loaders that are compared, and which of them this engine has. */
import { LOADERS, type Loader } from "../engine/types.js";
import type { Measurement } from "./report.js";

/** In the order in which they are measured; `splice` is the default. */
export const COMPARED = ["lazy-4k", "lazy", "eager", "reap", "splice"] as const;
/** The steps from a lazy start to `reap` (REAP, Figure 7), measured for two functions. */
export const ABLATION = ["reap-lazy", "reap-parallel", "reap-file"] as const;

export type LoaderName = (typeof COMPARED)[number] | (typeof ABLATION)[number];

/** The engine's loader of that name; undefined when it has none. */
export function loaderNamed(name: LoaderName, loaders: readonly string[] = LOADERS): Loader | undefined {
  return loaders.includes(name) ? (name as Loader) : undefined;
}

/** What stands in a report for something that this build cannot do: a failed run, never a gap. */
function notAvailable(workload: string, way: string, why: string): Measurement {
  return { workload, way, unit: "us", samples: [], failures: [{ round: 0, error: `not available: ${why}` }] };
}

/** Reports for the loaders of a list that the engine lacks. */
export function missingLoaders(
  workload: string,
  names: readonly LoaderName[],
  loaders: readonly string[] = LOADERS,
): Measurement[] {
  return names
    .filter((name) => loaderNamed(name, loaders) === undefined)
    .map((name) => notAvailable(workload, `thaw ${name}`, `this engine has only the loaders ${loaders.join(", ")}`));
}
