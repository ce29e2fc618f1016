/** Requests that demand an instance in a state that none is in yet: they wait while one may get there. */
import { ThawError } from "../base/errors.js";
import type { Slot } from "./slot.js";
import { LIMITS } from "./types.js";
import type { Version } from "./version.js";

/** One of them. */
export interface Waiter {
  readonly kind: "reuse" | "wake";
  /** With nothing when no instance can get there any more. */
  readonly give: (slot: Slot | undefined) => void;
}

/** Gives an instance to who has waited longest for one in that state. False when nobody does. */
export function giveToWaiter(slot: Slot, kind: Waiter["kind"]): boolean {
  const { slots } = slot.version;
  const index = slots.waiters.findIndex((waiter) => waiter.kind === kind);
  const [waiter] = index < 0 ? [] : slots.waiters.splice(index, 1);
  if (waiter === undefined) return false;
  slot.state = "running";
  slots.running += 1;
  waiter.give(slot);
  return true;
}

/** Who waits for what can come no more need not wait longer. */
export function disappoint(version: Version): void {
  const { waiters } = version.slots;
  for (const waiter of waiters.splice(0)) {
    if (mayGet(version, waiter.kind)) waiters.push(waiter);
    else waiter.give(undefined);
  }
}

/** An instance that got there, and how long that took; undefined when the version was replaced or removed meanwhile. PREFERENCE_UNAVAILABLE. */
export async function waitFor(
  version: Version,
  kind: Waiter["kind"],
): Promise<{ readonly slot: Slot; readonly waitUs: number } | undefined> {
  const began = performance.now();
  const waited = mayGet(version, kind);
  const slot = waited ? await given(version, kind) : undefined;
  const waitedMs = performance.now() - began;
  if (slot !== undefined) return { slot, waitUs: Math.round(waitedMs * 1000) };
  if (waited && version.retired) return undefined;
  const { why, fix } = because(version, kind, waited, waitedMs >= LIMITS.preferenceWaitMs);
  throw new ThawError("PREFERENCE_UNAVAILABLE", {
    what: `Function "${version.name}" was not started: the request demands ${kind}`,
    why,
    fix,
  });
}

/** Undefined when none came in time, or none can come any more. */
function given({ slots }: Version, kind: Waiter["kind"]): Promise<Slot | undefined> {
  return new Promise((resolve) => {
    const waiter: Waiter = {
      kind,
      give: (slot) => {
        clearTimeout(timer);
        resolve(slot);
      },
    };
    const timer = setTimeout(() => {
      slots.waiters.splice(slots.waiters.indexOf(waiter), 1);
      resolve(undefined);
    }, LIMITS.preferenceWaitMs);
    slots.waiters.push(waiter);
  });
}

/** Whether one may get there: for reuse one that runs or starts, for a wake one that is being hibernated. */
function mayGet({ slots }: Version, kind: Waiter["kind"]): boolean {
  return kind === "reuse" ? slots.running + slots.starting > 0 : slots.idle.some(({ state }) => state === "deflating");
}

/** Why a demanded instance is not there. */
function because(version: Version, kind: Waiter["kind"], waited: boolean, late: boolean): { why: string; fix: string } {
  const seconds = LIMITS.preferenceWaitMs / 1000;
  if (kind === "wake") {
    if (!late && version.hibernateRefused !== undefined)
      return { why: version.hibernateRefused, fix: "Demand another kind of start, or none" };
    const why = late ? `no instance was hibernated within ${seconds} s` : "it has no hibernated instance";
    return { why, fix: `Invoke it, then hibernate it: \`thaw hibernate ${version.name}\`` };
  }
  const why = late
    ? `no instance became free within ${seconds} s`
    : waited
      ? "none of its instances that were running or starting became free"
      : "it has no running instance";
  return { why, fix: "Invoke it once without a preference first" };
}
