/** Measures the floor of an image: see {@link measureFloor}. */

import { monotonicNs } from "../base/clock.js";
import { ThawError } from "../base/errors.js";
import { FLOOR_STAMPS } from "../image/index.js";
import { NO_PIDS } from "./choose-pid.js";
import type { HuskPool } from "./husk-pool.js";
import type { LoadedImage } from "./images.js";
import type { Keeper } from "./keeper.js";
import { usBetween } from "./parts.js";
import { runStage } from "./stages.js";
import type { FloorSample } from "./types.js";

interface FloorTools {
  readonly keeper: Keeper;
  readonly husks: HuskPool;
  readonly huskPath: string;
  readonly template: number;
}

/** In a husk of its own, which ends afterwards: maps what the image maps, faults as often as its recorded start did. */
export async function measureFloor(tools: FloorTools, loaded: LoadedImage): Promise<FloorSample> {
  if (!loaded.sets.recorded) {
    throw new ThawError("INVALID_ARGUMENT", {
      what: "the floor of this image cannot be measured",
      why: "no working set was recorded",
      fix: "thaw it twice and send each a request first",
    });
  }
  const husk = await tools.husks.make(tools.template, [], "generic", NO_PIDS);
  const { step, done, mappings, faults } = loaded.floorStep();
  try {
    const stamps = await runStage(tools.keeper, husk, step);
    const at = (index: number): number => (stamps[index] ?? 0) / 1000;
    const began = monotonicNs();
    await tools.keeper.helper([tools.huskPath]);
    return {
      spawnUs: usBetween(began, monotonicNs()),
      mappingsUs: at(FLOOR_STAMPS.mapped) - at(FLOOR_STAMPS.begin),
      faultsUs: at(FLOOR_STAMPS.faulted) - at(FLOOR_STAMPS.mapped),
      mappings,
      faults,
    };
  } finally {
    done();
    tools.husks.drop(husk);
    await husk.gone();
  }
}
