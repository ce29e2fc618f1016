/** What tests of the engine's rooms share. */
import type { InstanceExit } from "./keeper-messages.js";

/** How a process ended that took nothing: by itself, with code 0, unless `more` says otherwise. */
export function exitOf(more: Partial<InstanceExit> = {}): InstanceExit {
  const nothing = { oomKills: 0, maxRssKb: 0, peakBytes: 0 };
  return { code: 0, signal: undefined, ...nothing, sends: 1, ...more };
}
