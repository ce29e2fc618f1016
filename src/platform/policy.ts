/**
 * What happens to an instance that nobody uses: one interface. A policy is asked when a request has ended and its instance is idle, and
 * answers with steps. The next request ends the plan; what the memory budget or the machine's pressure take comes on top.
 *
 *     keep warm ──▶ hibernate ──▶ (wake ──▶ hibernate) ──▶ dispose: only the image is left
 */
import type { IdleFacts } from "./idle-times.js";

/** A step that does not apply (waking what is warm, hibernating what would save nothing) is left out. */
export interface IdleStep {
  /** Milliseconds after the end of the request. */
  readonly afterMs: number;
  readonly action: "hibernate" | "wake" | "dispose";
}

/** Decides what happens to idle instances. Called after every request: it must be fast, and do no input or output. */
export interface IdlePolicy {
  readonly name: string;
  /** Steps in the order of their times; after the last one the instance stays as it is. */
  decide(idle: IdleFacts): readonly IdleStep[];
}

/** Times that hold for every function. */
export interface IdleTimesOptions {
  /** How long an idle instance keeps its memory. Default 60 s. */
  readonly keepWarmMs?: number | undefined;
  /** How long it then stays hibernated before only its image remains. Default 1 h. */
  readonly keepHibernatedMs?: number | undefined;
  /** Both together, when given: an idle instance is not kept beyond it. */
  readonly keepAliveMs?: number | undefined;
}

const KEEP_WARM_MS = 60_000;
export const KEEP_HIBERNATED_MS = 3_600_000;

/** The same times for every function. */
export function fixedPolicy(options: IdleTimesOptions = {}): IdlePolicy {
  const { keepWarmMs = KEEP_WARM_MS, keepHibernatedMs = KEEP_HIBERNATED_MS } = options;
  const disposeMs = options.keepAliveMs ?? keepWarmMs + keepHibernatedMs;
  const dispose: IdleStep = { afterMs: disposeMs, action: "dispose" };
  const plan: readonly IdleStep[] = keepWarmMs < disposeMs ? [{ afterMs: keepWarmMs, action: "hibernate" }, dispose] : [dispose];
  return { name: "fixed", decide: () => plan };
}
