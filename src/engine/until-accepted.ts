/**
 * Freezing again what was refused: what a thread of the function holds for a moment, such as a file in /proc that it reads, is no reason
 * never to freeze it.
 */
import { nowMs, sleep } from "../base/clock.js";
import type { LiveStop } from "./live-freeze.js";
import { parseReply } from "./native.js";

/** A refusal is one when it was told again after each of these. */
const PAUSES_MS = [25, 75];
/** One that took longer waited for the function, and is no matter of a moment. */
const QUICK_MS = 1_000;

/** Runs `extract`, again where that may help. What it made before it was refused, it makes anew. */
export async function untilAccepted(
  extract: () => Promise<LiveStop>,
): Promise<{ readonly heldMs?: number; readonly reply: ReturnType<typeof parseReply> }> {
  for (const pauses = [...PAUSES_MS]; ; ) {
    const began = nowMs();
    const { ended, ...held } = await extract();
    const reply = parseReply(ended.stdout);
    const pauseMs = pauses.shift();
    if (reply.ok || reply.code !== "refused" || pauseMs === undefined || nowMs() - began > QUICK_MS) return { ...held, reply };
    await sleep(pauseMs);
  }
}
