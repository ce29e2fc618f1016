/** `thaw heat`: one hotter image, now. Nothing that serves is touched unless it worked. */
import { isThawError, ThawError } from "../base/errors.js";
import type { Image } from "../engine/types.js";
import type { Heating } from "./heating.js";
import { checkPayload } from "./payload.js";
import { declaredEvents, type Events, failed, replayEnd, replayOne, sameEvent } from "./replay.js";
import { resourceError } from "./resources.js";
import { type HeatReport, type HeatRequest, LIMITS } from "./types.js";
import type { Version } from "./version.js";

/** INVALID_ARGUMENT, INVALID_PAYLOAD, IMAGE_NOT_READY, WARM_UP_FAILED, RESOURCE_EXHAUSTED; see {@link Platform.heat}. */
export async function heatByHand(heating: Heating, version: Version, request: HeatRequest): Promise<HeatReport> {
  const { requests } = request;
  if (!Number.isInteger(requests) || requests < 1 || requests > LIMITS.heatRequestsMax) {
    const why = `the number of requests is ${String(requests)}, and it must be a whole number from 1 to ${LIMITS.heatRequestsMax}`;
    throw invalid(version, why, "Use --requests 1000");
  }
  const events = await eventsOf(version, request);
  originOf(version, request);
  try {
    return await heating.add(version, () => heat(heating, version, originOf(version, request), events, request));
  } catch (error) {
    if (heating.wants(version)) version.counters.add("heatFailures");
    throw resourceError(error, `Function "${version.name}" was not heated`);
  }
}

async function heat(
  heating: Heating,
  version: Version,
  origin: Image,
  events: Events,
  { requests, signal }: HeatRequest,
): Promise<HeatReport> {
  const times: number[] = [];
  const endMs = replayEnd();
  const goOn = (): void => {
    if (signal?.aborted === true) throw failed(version, "whoever asked for it waits no more");
  };
  goOn();
  const made = await heating.privately(version, origin, async (instance) => {
    while (times.length < requests) {
      await heating.check(version);
      goOn();
      if (performance.now() >= endMs) {
        throw failed(
          version,
          `${times.length} of ${requests} requests took ${LIMITS.heatMs / 1000} s, which is the limit for one image`,
        );
      }
      times.push(await replayOne(version, instance, origin, events, times.length));
    }
    goOn();
    try {
      return await heating.publish(version, instance, "by-hand", "end", events);
    } catch (error) {
      if (!isThawError(error, "FREEZE_REFUSED")) throw error;
      throw failed(version, `after ${events.name(requests - 1)} it cannot be frozen: ${error.message}`, error);
    }
  });
  const image = version.imageEntries().find(({ generation }) => generation === made.generation);
  if (image === undefined) {
    throw failed(version, "the policy gave the new image up at once, because others are better or there are too many");
  }
  const last = times.slice(-Math.max(1, Math.floor(requests / 10))).sort((a, b) => a - b);
  return { image, requests, firstMs: times[0] ?? 0, lastMs: last[Math.floor(last.length / 2)] ?? 0 };
}

async function eventsOf(version: Version, { payload }: HeatRequest): Promise<Events> {
  if (payload !== undefined) return sameEvent(await checkPayload(payload));
  const { warmUp } = version.stored.config;
  return warmUp === undefined ? sameEvent("{}") : declaredEvents(warmUp.events);
}

/** The image to begin from. Looked up when it is asked for and again when its turn has come. */
function originOf(version: Version, { from }: HeatRequest): Image {
  const { numbers, hottest } = version.generations;
  if (hottest === undefined) {
    throw new ThawError("IMAGE_NOT_READY", {
      what: `Function "${version.name}" was not heated`,
      why: version.image.reason ?? "its first image is still being made",
      fix: version.imageAdvice(),
    });
  }
  if (from === undefined) return hottest;
  const image = version.generations.find(from);
  if (image !== undefined) return image;
  const why = `it has no image of generation ${String(from)}; those that exist are ${numbers.join(", ")}`;
  throw invalid(version, why, `See \`thaw image ls ${version.name}\``);
}

function invalid(version: Version, why: string, fix: string): ThawError {
  return new ThawError("INVALID_ARGUMENT", { what: `Function "${version.name}" was not heated`, why, fix });
}
