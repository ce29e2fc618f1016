/**
 * Who runs. An instance serves one request at a time. A place is taken when a start begins and given back when the instance
 * has ended; at most `maxInstances` places exist, and at most `version.limit` for one function.
 *
 *     request ─▶ idle instance? ──yes──▶ running ─▶ reply ─▶ idle ──▶ hibernated ──▶ ending ─▶ gone
 *                    │ no                  ▲  ▲               │ by the policy (idle.ts)    ▲
 *              hibernated? ────────────────┘  │               │ dead, ;dispose, retired    │
 *                    │ no                     │               └────────────────────────────┤
 *              a place free? ─▶ starting ─────┘                                            │
 *                    │ no                                                                  │
 *                    ▼                                                                     │
 *              longest idle instance of any function is evicted ───────────────────────────┘
 *                    │ none: wait for one that is ending already
 *                    ▼ none: TOO_MANY_INSTANCES
 *
 * What starts or wakes also needs room in the memory budget, made in the same manner. There is no queue beyond that. The way of
 * reuse touches no timer, no promise but the caller's, and no disk.
 */
import { ThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import { formatBytes, MIB } from "../base/units.js";
import type { Instance, StartResult } from "../engine/types.js";
import type { Budget } from "./budget.js";
import { IdleInstances } from "./idle.js";
import { wholeLines } from "./logs.js";
import type { IdlePolicy } from "./policy.js";
import { newSlot, type Slot } from "./slot.js";
import { type Attempt, startOf } from "./starts.js";
import { serverStops } from "./stopping.js";
import type { InstanceCounts, Preference } from "./types.js";
import type { Version } from "./version.js";
import { disappoint, giveToWaiter, type Waiter, waitFor } from "./waiters.js";

/** An instance to use now. Goes back by {@link Instances.release}. */
export interface Lease {
  readonly slot: Slot;
  /** How the instance was started for this request. Complete after its first answer. */
  readonly start: () => StartResult;
  /** Of an instance that was started for this request; what {@link Instances.startAgain} goes on with. */
  readonly attempt?: Attempt;
}

/** How instances come into being; see starts.ts. */
export interface Starter {
  /** Resolves when a demanded image is there; rejects with PREFERENCE_UNAVAILABLE. Returns microseconds waited. */
  prepare(version: Version, prefer: Preference | undefined): Promise<number>;
  start(attempt: Attempt): Promise<Instance>;
  /** Returns when a start that failed before the function ran may be made again; throws what the request is told otherwise. */
  judge(attempt: Attempt, error: unknown): void;
}

export interface InstancesOptions {
  readonly maxInstances: number;
  readonly policy: IdlePolicy;
  readonly budget: Budget;
  readonly log: Logger;
  /** First pause after the disk was too full to hibernate. */
  readonly backoffMs?: number | undefined;
}

/** The scheduler. */
export class Instances {
  readonly #starter: Starter;
  readonly #options: InstancesOptions;
  /** Versions that have, or had, instances. */
  readonly #versions = new Set<Version>();
  readonly #ending = new Set<Promise<void>>();
  readonly idle: IdleInstances;
  #occupied = 0;
  #closed = false;

  constructor(starter: Starter, options: InstancesOptions) {
    this.#starter = starter;
    this.#options = options;
    const { policy, budget, log, backoffMs } = options;
    const hibernated = (slot: Slot): boolean => giveToWaiter(slot, "wake");
    const end = (slot: Slot): Promise<void> => this.#end(slot);
    this.idle = new IdleInstances({
      policy,
      budget,
      log,
      backoffMs,
      end,
      ending: this.#ending,
      hibernated,
      deflated: disappoint,
    });
  }

  /** A request came: the policy learns how long its function was idle. */
  arrived({ slots, idleTimes }: Version): void {
    if (slots.running + slots.starting === 0) idleTimes.ended();
  }

  /**
   * The idle instance that was used last, whose pages are the warmest; undefined when there is none. One that is on its way to disk or
   * back will do, unless `still`: the engine ends what is under way there within milliseconds.
   */
  takeIdle(version: Version, still = false): Lease | undefined {
    const slot = this.#living(version, () => this.idle.take(version, still));
    return slot === undefined ? undefined : reused(slot);
  }

  /**
   * An instance for one request; undefined when the version was replaced or removed before a place was taken: look it up again.
   * TOO_MANY_INSTANCES, PREFERENCE_UNAVAILABLE, or what the start failed with. `fresh`: one that has served nobody, unless another kind is demanded.
   */
  async acquire(version: Version, prefer?: Preference, fresh = false): Promise<Lease | undefined> {
    const any = prefer === undefined && !fresh;
    if (any || prefer?.kind === "reuse") {
      const lease = this.takeIdle(version, prefer !== undefined);
      if (lease !== undefined) return lease;
      if (prefer !== undefined) return this.#demanded(version, "reuse");
    }
    if (any || prefer?.kind === "wake") {
      const slot = this.#living(version, () => this.idle.takeHibernated(version));
      if (slot !== undefined) return this.#roused(slot);
      if (prefer !== undefined) return this.#demanded(version, "wake");
    }
    const waitedUs = await this.#starter.prepare(version, prefer);
    const reservedBytes = await this.#reserve(version);
    if (reservedBytes === undefined) return undefined;
    version.slots.starting += 1;
    return this.#start({ version, prefer, waitedUs, reservedBytes, image: undefined, husksLost: 0, fallback: undefined });
  }

  /**
   * Another instance in the place of one whose start failed before the function ran, as `error` tells; see starts.ts. When it may not
   * be tried again, throws what the request is told. `lease` is over in either case.
   */
  async startAgain({ slot }: Lease, attempt: Attempt, error: unknown): Promise<Lease> {
    const { version } = slot;
    // The place and the memory are kept, so that no other request can take them meanwhile.
    this.#takePlace(version);
    attempt.reservedBytes = slot.residentBytes;
    this.#options.budget.count(attempt.reservedBytes);
    version.slots.running -= 1;
    version.slots.starting += 1;
    const ended = this.#end(slot);
    try {
      this.#starter.judge(attempt, error);
    } catch (told) {
      this.#abandonStart(attempt);
      throw told;
    }
    await ended;
    return this.#start(attempt);
  }

  /** Starts an instance in a place that was taken and is counted as starting. */
  async #start(attempt: Attempt): Promise<Lease> {
    const { version } = attempt;
    let instance: Instance;
    try {
      instance = await this.#starter.start(attempt);
    } catch (error) {
      this.#abandonStart(attempt);
      throw error;
    }
    version.slots.starting -= 1;
    const slot = this.#adopt(attempt, instance);
    if (version.killed) {
      await this.#end(slot);
      if (this.#closed) throw stopping(version);
      throw new ThawError("FUNCTION_NOT_FOUND", {
        what: `Function "${version.name}" cannot be invoked`,
        why: "it was removed while an instance was starting",
        fix: "Deploy it again",
      });
    }
    slot.state = "running";
    version.slots.running += 1;
    return { slot, start: () => startOf(attempt, instance), attempt };
  }

  /** Takes an instance back after its request; `dispose` ends it. Returns at once. */
  release(slot: Slot, dispose: boolean): void {
    const { version } = slot;
    version.slots.running -= 1;
    if (version.slots.running + version.slots.starting === 0) version.idleTimes.begun();
    // Its end was told with its answer, if that was how it ended.
    if (dispose) slot.endedBy = undefined;
    if (dispose || version.retired || slot.state === "ending" || !slot.instance.alive) {
      void this.#end(slot);
      disappoint(version);
      return;
    }
    if (giveToWaiter(slot, "reuse")) return;
    this.idle.add(slot);
  }

  /**
   * No instance of `version` is left when it resolves: idle ones end now, running ones when their request is answered, and
   * whatever still runs after `drainMs` is killed.
   */
  async retire(version: Version, drainMs: number): Promise<void> {
    version.retired = true;
    for (const waiter of version.slots.waiters.splice(0)) waiter.give(undefined);
    for (const slot of this.idle.removeAll(version)) void this.#end(slot);
    if (version.slots.occupied > 0) await this.#vacant(version, drainMs);
    if (version.slots.occupied > 0) {
      version.killed = true;
      for (const slot of version.slots.all) void this.#end(slot);
      await this.#vacant(version, drainMs);
    }
    this.#versions.delete(version);
  }

  /** Ends everything: as {@link retire}, for all versions. Idempotent. */
  async close(drainMs: number): Promise<void> {
    this.#closed = true;
    this.idle.close();
    await Promise.all([...this.#versions].map((version) => this.retire(version, drainMs)));
    await Promise.all(this.#ending);
  }

  counts(): InstanceCounts & { max: number } {
    const counts = { running: 0, idle: 0, hibernated: 0, starting: 0, waiting: 0, max: this.#options.maxInstances };
    for (const version of this.#versions) {
      const own = version.instanceCounts();
      counts.running += own.running;
      counts.idle += own.idle;
      counts.hibernated += own.hibernated;
      counts.starting += own.starting;
      counts.waiting += own.waiting;
    }
    return counts;
  }

  /** Takes until one lives. */
  #living(version: Version, take: () => Slot | undefined): Slot | undefined {
    for (let slot = take(); slot !== undefined; slot = take()) {
      if (slot.instance.alive) {
        version.slots.running += 1;
        return slot;
      }
      void this.#end(slot);
    }
    return undefined;
  }

  /** A hibernated instance for a request that will wake it, once there is room for its memory. Undefined when it ended meanwhile. */
  async #roused(slot: Slot): Promise<Lease | undefined> {
    const { version } = slot;
    const { budget } = this.#options;
    const bytes = this.idle.wakeBytes(slot);
    const room = await this.idle.reserve(bytes);
    if (room) budget.count(-bytes);
    if (!slot.instance.alive || version.retired) {
      version.slots.running -= 1;
      void this.#end(slot);
      disappoint(version);
      return undefined;
    }
    if (!room) {
      version.slots.running -= 1;
      this.idle.putBack(slot);
      disappoint(version);
      throw this.#noRoom(version, bytes);
    }
    budget.assign(slot, slot.residentBytes + bytes);
    return reused(slot);
  }

  /** One that gets into the demanded state; undefined when the version was replaced or removed meanwhile. */
  async #demanded(version: Version, kind: Waiter["kind"]): Promise<Lease | undefined> {
    const given = await waitFor(version, kind);
    if (given === undefined) return undefined;
    const { slot, waitUs } = given;
    const lease = kind === "wake" ? await this.#roused(slot) : reused(slot);
    return lease === undefined ? undefined : { slot, start: () => ({ ...lease.start(), waitUs }) };
  }

  #abandonStart({ version, reservedBytes }: Attempt): void {
    version.slots.starting -= 1;
    this.#options.budget.count(-reservedBytes);
    this.#giveBack(version);
    disappoint(version);
  }

  /** Takes a place and memory, the bytes of which it returns; undefined when the version is retired. */
  async #reserve(version: Version): Promise<number | undefined> {
    if (!(await this.#reservePlace(version))) return undefined;
    const bytes = this.#options.budget.estimate(version);
    if (await this.idle.reserve(bytes)) return bytes;
    this.#giveBack(version);
    disappoint(version);
    throw this.#noRoom(version, bytes);
  }

  /** Takes a place, evicting an idle instance when there is none. False when the version is retired. */
  async #reservePlace(version: Version): Promise<boolean> {
    while (true) {
      if (this.#closed) throw stopping(version);
      if (version.retired) return false;
      const ownFull = version.slots.occupied >= version.limit;
      if (!ownFull && this.#occupied < this.#options.maxInstances) break;
      const victim = this.idle.longestIdle(ownFull ? version : undefined);
      const ending = [...(ownFull ? version.slots.ending : this.#ending), ...this.idle.freezing(ownFull ? version : undefined)];
      if (victim !== undefined) {
        this.idle.remove(victim);
        victim.version.counters.add("evictions");
        // The place passes to this request at once, so that no other can take it while the victim ends.
        this.#takePlace(version);
        await this.#end(victim);
        return true;
      }
      if (ending.length === 0) throw this.#tooMany(version, ownFull);
      await Promise.race(ending);
    }
    this.#takePlace(version);
    return true;
  }

  #takePlace(version: Version): void {
    this.#versions.add(version);
    this.#occupied += 1;
    version.slots.occupied += 1;
  }

  #giveBack(version: Version): void {
    this.#occupied -= 1;
    version.slots.occupied -= 1;
    if (version.slots.occupied === 0) for (const done of version.slots.onVacant) done();
  }

  #adopt({ version, reservedBytes, image }: Attempt, instance: Instance): Slot {
    const slot = newSlot(version, instance, image);
    this.#options.budget.count(-reservedBytes);
    this.#options.budget.assign(slot, reservedBytes);
    version.slots.all.add(slot);
    instance.onExit((reason) => {
      if (slot.state === "ending") return;
      slot.endedBy = reason;
      if (this.idle.remove(slot)) void this.#end(slot);
    });
    return slot;
  }

  /** Ends an instance that is in no list; its place is free when the promise resolves. Safe to call again. What no answer brought of its output is logged. */
  #end(slot: Slot): Promise<void> {
    const { version } = slot;
    if (!version.slots.all.delete(slot)) return Promise.resolve();
    slot.state = "ending";
    // What is being frozen is ended when that is done: the engine would have to give up an image that is nearly there.
    const disposed = (slot.freezing ?? afterAnswer()).then(() => slot.instance.dispose());
    const ended = disposed
      .catch((error: unknown) => {
        this.#options.log.error(
          { err: error, function: version.name, instance: slot.instance.id },
          "an instance could not be ended",
        );
      })
      .then(() => {
        const printed = wholeLines(slot.instance.takeLogs());
        const end = slot.endedBy === undefined ? "" : `thaw: an idle instance ended by itself: ${slot.endedBy}\n`;
        if (printed + end !== "") version.log.append("", printed + end);
        this.#options.budget.assign(slot, 0);
        version.slots.ending.delete(ended);
        this.#ending.delete(ended);
        this.#giveBack(version);
      });
    version.slots.ending.add(ended);
    this.#ending.add(ended);
    return ended;
  }

  /** Resolves when no place is taken, or after `timeoutMs`. */
  #vacant(version: Version, timeoutMs: number): Promise<void> {
    if (version.slots.occupied === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        version.slots.onVacant.delete(done);
        resolve();
      };
      const timer = setTimeout(done, timeoutMs);
      version.slots.onVacant.add(done);
    });
  }

  #tooMany(version: Version, ownFull: boolean): ThawError {
    version.counters.add("throttles");
    const limit = ownFull ? version.limit : this.#options.maxInstances;
    return new ThawError("TOO_MANY_INSTANCES", {
      what: `Function "${version.name}" was not started`,
      why: `${limit === 1 ? "the one instance" : `all ${limit} instances`} that ${ownFull ? "it" : "this server"} may have ${limit === 1 ? "is" : "are"} busy`,
      fix: ownFull
        ? "Try again, or deploy it with a higher --max-instances"
        : "Try again, or start the server with a higher --max-instances",
      details: { limit, scope: ownFull ? "function" : "server" },
    });
  }

  #noRoom(version: Version, bytes: number): ThawError {
    version.counters.add("throttles");
    const { limitBytes, usedBytes, huskBytes } = this.#options.budget;
    const husks = huskBytes >= MIB;
    const users = husks ? `by husks that wait in pools (${formatBytes(huskBytes)}) and by instances` : "by instances";
    return new ThawError("TOO_MANY_INSTANCES", {
      what: `Function "${version.name}" was not started`,
      why: `it takes about ${formatBytes(bytes)}, and ${formatBytes(usedBytes)} of the memory budget of ${formatBytes(limitBytes)} are in use ${users} that are busy, or kept for what they may come to`,
      fix: `Try again, or start the server with a larger --memory-budget${husks ? ", or have fewer husks parked (--park, --provisioned)" : ""}`,
      details: { limitBytes, usedBytes, huskBytes, bytes, scope: "server" },
    });
  }
}

const stopping = ({ name }: Version): ThawError => serverStops(`Function "${name}" was not started`);

/** The next turn of the event loop: whoever's request made an instance superfluous has his answer on the way before processes and memory are ended. */
function afterAnswer(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/**
 * A lease of an instance that was there. When the request wakes it, the instance says how. One that is being deflated is not woken but kept
 * awake: what its `start` becomes meanwhile is of an earlier wake, of which more has become known.
 */
function reused(slot: Slot): Lease {
  const { instance } = slot;
  if (instance.state !== "hibernated") return { slot, start: () => slot.reuse };
  const before = instance.start;
  return { slot, start: () => (instance.start !== before && instance.start.kind === "wake" ? instance.start : slot.reuse) };
}
