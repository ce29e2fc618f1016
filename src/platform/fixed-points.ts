/** The simplest policy of heat: images at given numbers of requests, of which the hottest is thawed. */
import type { HeatPolicy } from "./heat-policy.js";

/** @param points numbers of requests, growing */
export function fixedPoints(points: readonly number[] = [0, 1, 10, 100, 1000]): HeatPolicy {
  return {
    name: "fixed points",
    begin: () => ({
      choose: (images) => images.reduce((hottest, image) => (image.heat > hottest.heat ? image : hottest)),
      freezeAt: (images) => points.find((point) => images.every(({ heat }) => heat < point)),
      answered: () => undefined,
      surplus: () => [],
    }),
  };
}
