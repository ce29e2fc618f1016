/** Whether an instance is over, of which the keeper may not have told yet. */
import { nowMs, sleep } from "../base/clock.js";
import { isEnding } from "../linux/ending.js";
import type { LiveInstance } from "./instance.js";

/** How long its end is waited for: of one that does not look like ending, of one that does; and how often it is looked at. */
const EXIT_GRACE_MS = 250;
const EXIT_MS_MAX = 30_000;
const EXIT_LOOK_MS = 5;

/**
 * A process that ends, with the extractor or before it, is told of by the keeper in a message of its own, which may come later: how much
 * later, the machine decides.
 */
export async function hasEnded(
  instance: LiveInstance,
  { code }: Readonly<Record<string, unknown>> = { code: "failed" },
): Promise<boolean> {
  const began = nowMs();
  const graceMs = code === "failed" ? EXIT_GRACE_MS : 0;
  let told = false;
  const gone = instance.husk.gone().then(() => {
    told = true;
  });
  while (instance.alive && !told) {
    const maxMs = isEnding(instance.hostPid) ? EXIT_MS_MAX : graceMs;
    if (nowMs() - began >= maxMs) break;
    await Promise.race([gone, sleep(EXIT_LOOK_MS)]);
  }
  return !instance.alive;
}
