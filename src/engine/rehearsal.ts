/**
 * Starts that nobody's request waits for: they record what starts of an image touch, one fault for each page (docs/design/working-set.md), which takes
 * a request ten milliseconds. Whether with requests whose effects somebody has declared harmless, or rehearsed, with all but the function's own code.
 */
import { RECORDINGS_MAX } from "../image/index.js";
import type { Engine, Image, PrepareOptions } from "./types.js";

/** What a declared request may take. */
const REQUEST_MS_MAX = 10_000;
const NO_EVENT = "{}";

/** Records until it is known what starts touch. Ends early where somebody else records, the loader does not, a request fails, or with `signal`. Rejects as a thaw does. */
export async function rehearse(
  engine: Pick<Engine, "thaw">,
  image: Image,
  requests: NonNullable<PrepareOptions["record"]>,
  signal?: AbortSignal,
): Promise<void> {
  const rehearsal = requests === "rehearsal";
  const unwanted = (): boolean => signal?.aborted === true;
  for (let index = 0; index < RECORDINGS_MAX; index++) {
    if (unwanted()) return;
    // The pool's are for requests.
    const clone = await engine.thaw(image, { husk: "fresh" });
    const end = (): void => void clone.dispose().catch(() => undefined);
    signal?.addEventListener("abort", end);
    try {
      if (clone.start.recording !== true || unwanted()) return;
      const deadlineMs = Date.now() + Math.min(REQUEST_MS_MAX, image.spec.timeoutMs);
      const { functionError } = rehearsal
        ? await clone.invoke(NO_EVENT, { deadlineMs, rehearsal })
        : await clone.invoke(requests(index), { deadlineMs });
      if (functionError !== undefined) return;
    } finally {
      signal?.removeEventListener("abort", end);
      await clone.dispose();
    }
  }
}
