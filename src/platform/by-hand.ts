/** `thaw hibernate` and `thaw wake`: all idle instances of one function, now, whatever the policy thinks of it. */
import { errorText, ThawError } from "../base/errors.js";
import type { Budget } from "./budget.js";
import { type IdleInstances, isOfHibernating } from "./idle.js";
import type { HandReport } from "./types.js";
import type { Version } from "./version.js";

/** Hibernates every idle instance. NO_INSTANCE; when none could be, what the engine refuses, or how one ended meanwhile. */
export async function hibernateByHand(idle: IdleInstances, version: Version): Promise<HandReport> {
  const slots = version.slots.idle.filter(({ state, freezing }) => state === "idle" && freezing === undefined);
  if (slots.length === 0) throw nothing(version, "hibernate");
  await idle.measure([version]);
  let done = 0;
  let residentBytes = 0;
  let hibernatedBytes = 0;
  let failure: unknown;
  // One after the other: each keeps a core and the disk busy.
  for (const slot of slots) {
    if (slot.state !== "idle" || slot.freezing !== undefined) continue;
    const before = slot.residentBytes;
    try {
      if (!(await idle.deflate(slot))) continue;
      done += 1;
      residentBytes += slot.residentBytes - before;
      hibernatedBytes += slot.hibernatedBytes;
    } catch (error) {
      // One that was evicted or removed meanwhile is nobody's failure. One that ended by itself has that to tell.
      if (slot.instance.alive || slot.endedBy !== undefined || isOfHibernating(error)) failure ??= error;
    }
  }
  if (done === 0 && failure !== undefined) throw failure;
  return reportOf(version, slots.length - done, failure, { instances: done, residentBytes, hibernatedBytes });
}

/** Wakes every hibernated instance that the budget has room for. NO_INSTANCE; TOO_MANY_INSTANCES when there is room for none. */
export async function wakeByHand(idle: IdleInstances, budget: Budget, version: Version): Promise<HandReport> {
  const slots = [...version.slots.hibernated];
  if (slots.length === 0) throw nothing(version, "wake");
  let done = 0;
  let residentBytes = 0;
  let hibernatedBytes = 0;
  let failure: unknown;
  for (const slot of slots) {
    if (slot.state !== "hibernated") continue;
    const bytes = idle.wakeBytes(slot);
    if (!budget.fits(bytes)) {
      failure ??= new ThawError("TOO_MANY_INSTANCES", {
        what: `Function "${version.name}" was not woken`,
        why: "the memory budget has no room for it",
        fix: "Hibernate another function first, or start the server with a larger --memory-budget",
      });
      continue;
    }
    budget.assign(slot, slot.residentBytes + bytes);
    try {
      await idle.wake(slot);
      done += 1;
      residentBytes += bytes;
      hibernatedBytes += slot.hibernatedBytes;
      idle.renew(slot);
    } catch (error) {
      if (slot.instance.alive) failure ??= error;
    }
  }
  if (done === 0 && failure !== undefined) throw failure;
  await idle.measure([version]);
  return reportOf(version, slots.length - done, failure, { instances: done, residentBytes, hibernatedBytes });
}

function reportOf(
  { name }: Version,
  skipped: number,
  failure: unknown,
  sums: Pick<HandReport, "instances" | "residentBytes" | "hibernatedBytes">,
): HandReport {
  return { name, skipped, ...(failure === undefined ? {} : { reason: errorText(failure) }), ...sums };
}

function nothing(version: Version, what: "hibernate" | "wake"): ThawError {
  const { running, idle, hibernated, starting } = version.instanceCounts();
  const busy = running + starting;
  const frozen = version.slots.idle.some(({ freezing }) => freezing !== undefined);
  const why =
    what === "hibernate"
      ? hibernated > 0
        ? `its ${hibernated === 1 ? "instance is" : `${hibernated} instances are`} hibernated already`
        : busy > 0
          ? `its ${busy === 1 ? "instance is" : `${busy} instances are`} busy`
          : frozen
            ? "an image is being taken of its instance"
            : idle > 0
              ? "its instances are on their way already"
              : "it has no instance"
      : idle + busy > 0
        ? "its instances are awake"
        : "it has no instance";
  return new ThawError("NO_INSTANCE", {
    what: `Function "${version.name}" has nothing to ${what}`,
    why,
    fix:
      what === "wake"
        ? `Hibernate it first: \`thaw hibernate ${version.name}\``
        : frozen
          ? "Try again in a moment"
          : `Invoke it first: \`thaw invoke ${version.name}\`; \`thaw ls\` shows its instances`,
  });
}
