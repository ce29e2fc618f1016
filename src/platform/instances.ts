/**
 * Who runs. An instance serves one request at a time. A place is taken when a start begins and given back when the instance
 * has ended; at most `maxInstances` places exist, and at most `version.limit` for one function.
 *
 *     request ─▶ idle instance? ──yes──▶ running ─▶ reply ─▶ idle ──keepAliveMs──▶ ending ─▶ gone
 *                    │ no                   ▲                 │ dead, ;dispose, retired   ▲
 *                    ▼                      │                 └───────────────────────────┤
 *              a place free? ─▶ starting ───┘                                             │
 *                    │ no                                                                 │
 *                    ▼                                                                    │
 *              longest idle instance of any function is evicted ──────────────────────────┘
 *                    │ none: wait for one that is ending already
 *                    ▼ none: TOO_MANY_INSTANCES
 *
 * There is no queue beyond that. The way of reuse touches no timer, no promise but the caller's, and no disk.
 */
import { ThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import type { Instance, StartResult } from "../engine/types.js";
import type { CounterSet } from "./metrics.js";
import { type Attempt, startOf } from "./starts.js";
import type { Preference } from "./types.js";
import { LIMITS } from "./types.js";
import type { Version } from "./version.js";

/** An instance and where it stands. */
export interface Slot {
  readonly version: Version;
  readonly instance: Instance;
  /** Told to everyone that gets this instance after its first request. */
  readonly reuse: StartResult;
  state: "running" | "idle" | "ending";
  idleSinceMs: number;
}

/** A request that demands `reuse` while all instances are running. */
export interface Waiter {
  /** With nothing when no instance can become free any more. */
  readonly give: (slot: Slot | undefined) => void;
}

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
  readonly keepAliveMs: number;
  readonly counters: CounterSet;
  readonly log: Logger;
}

/** The scheduler. */
export class Instances {
  readonly #starter: Starter;
  readonly #options: InstancesOptions;
  /** Versions that have, or had, instances. */
  readonly #versions = new Set<Version>();
  readonly #ending = new Set<Promise<void>>();
  readonly #timer: NodeJS.Timeout;
  #occupied = 0;
  #closed = false;

  constructor(starter: Starter, options: InstancesOptions) {
    this.#starter = starter;
    this.#options = options;
    // One coarse clock for all instances: an idle one may stay a quarter longer than asked.
    this.#timer = setInterval(() => this.#expire(), Math.min(5_000, Math.max(10, options.keepAliveMs / 4)));
    this.#timer.unref();
  }

  /** The idle instance that was used last, whose pages are the warmest; undefined when there is none. */
  takeIdle(version: Version): Slot | undefined {
    const slots = version.slots;
    for (let slot = slots.idle.pop(); slot !== undefined; slot = slots.idle.pop()) {
      if (slot.instance.alive) {
        slot.state = "running";
        slots.running += 1;
        return slot;
      }
      void this.#end(slot);
    }
    return undefined;
  }

  /**
   * An instance for one request; undefined when the version was replaced or removed before a place was taken: look it up again.
   * TOO_MANY_INSTANCES, PREFERENCE_UNAVAILABLE, or what the start failed with.
   */
  async acquire(version: Version, prefer?: Preference): Promise<Lease | undefined> {
    if (prefer === undefined || prefer.kind === "reuse") {
      const slot = this.takeIdle(version);
      if (slot !== undefined) return { slot, start: () => slot.reuse };
      if (prefer !== undefined) return this.#waitForReuse(version);
    }
    const waitedUs = await this.#starter.prepare(version, prefer);
    if (!(await this.#reserve(version))) return undefined;
    version.slots.starting += 1;
    return this.#start({ version, prefer, waitedUs, image: undefined, husksLost: 0, fallback: undefined });
  }

  /**
   * Another instance in the place of one whose start failed before the function ran, as `error` tells; see starts.ts. When it may not
   * be tried again, throws what the request is told. `lease` is over in either case.
   */
  async startAgain(lease: Lease, attempt: Attempt, error: unknown): Promise<Lease> {
    const { slot } = lease;
    const { version } = slot;
    // The place is kept, so that no other request can take it meanwhile.
    this.#take(version);
    version.slots.running -= 1;
    version.slots.starting += 1;
    const ended = this.#end(slot);
    try {
      this.#starter.judge(attempt, error);
    } catch (told) {
      this.#abandonStart(version);
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
      this.#abandonStart(version);
      throw error;
    }
    version.slots.starting -= 1;
    const slot = this.#adopt(version, instance);
    if (version.killed) {
      await this.#end(slot);
      throw new ThawError("FUNCTION_NOT_FOUND", {
        what: `Function "${version.name}" cannot be invoked`,
        why: "it was removed, or the server stopped, while an instance was starting",
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
    if (dispose || version.retired || slot.state === "ending" || !slot.instance.alive) {
      void this.#end(slot);
      this.#disappoint(version);
      return;
    }
    const waiter = version.slots.waiters.shift();
    if (waiter !== undefined) {
      version.slots.running += 1;
      waiter.give(slot);
      return;
    }
    slot.state = "idle";
    slot.idleSinceMs = performance.now();
    version.slots.idle.push(slot);
  }

  /**
   * No instance of `version` is left when it resolves: idle ones end now, running ones when their request is answered, and
   * whatever still runs after `drainMs` is killed.
   */
  async retire(version: Version, drainMs: number): Promise<void> {
    version.retired = true;
    for (const waiter of version.slots.waiters.splice(0)) waiter.give(undefined);
    for (const slot of version.slots.idle.splice(0)) void this.#end(slot);
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
    clearInterval(this.#timer);
    await Promise.all([...this.#versions].map((version) => this.retire(version, drainMs)));
    await Promise.all(this.#ending);
  }

  counts(): { running: number; idle: number; starting: number; max: number } {
    const counts = { running: 0, idle: 0, starting: 0, max: this.#options.maxInstances };
    for (const { slots } of this.#versions) {
      counts.running += slots.running;
      counts.idle += slots.idle.length;
      counts.starting += slots.starting;
    }
    return counts;
  }

  #abandonStart(version: Version): void {
    version.slots.starting -= 1;
    this.#giveBack(version);
    this.#disappoint(version);
  }

  async #waitForReuse(version: Version): Promise<Lease | undefined> {
    const { slots } = version;
    const began = performance.now();
    const waited = slots.running + slots.starting > 0;
    if (waited) {
      const slot = await new Promise<Slot | undefined>((resolve) => {
        const waiter: Waiter = {
          give: (given) => {
            clearTimeout(timer);
            resolve(given);
          },
        };
        const timer = setTimeout(() => {
          slots.waiters.splice(slots.waiters.indexOf(waiter), 1);
          resolve(undefined);
        }, LIMITS.preferenceWaitMs);
        slots.waiters.push(waiter);
      });
      if (slot === undefined && version.retired) return undefined;
      if (slot !== undefined) {
        const waitUs = Math.round((performance.now() - began) * 1000);
        return { slot, start: () => ({ ...slot.reuse, waitUs }) };
      }
    }
    const waitedMs = performance.now() - began;
    const ended = waited ? "the instances that were running ended" : "it has no running instance";
    throw new ThawError("PREFERENCE_UNAVAILABLE", {
      what: `Function "${version.name}" was not started: the request demands reuse`,
      why: waitedMs < LIMITS.preferenceWaitMs ? ended : `no instance became free within ${LIMITS.preferenceWaitMs / 1000} s`,
      fix: "Invoke it once without a preference first",
    });
  }

  /** Nothing is left that could become free: who demands reuse need not wait longer. */
  #disappoint(version: Version): void {
    const { running, starting, waiters } = version.slots;
    if (running + starting === 0) for (const waiter of waiters.splice(0)) waiter.give(undefined);
  }

  /** Takes a place, evicting an idle instance when there is none. False when the version is retired. */
  async #reserve(version: Version): Promise<boolean> {
    while (true) {
      if (this.#closed)
        throw new ThawError("SHUTTING_DOWN", {
          what: `Function "${version.name}" was not started`,
          why: "the server is stopping",
          fix: "Try again when it has been started again",
        });
      if (version.retired) return false;
      const ownFull = version.slots.occupied >= version.limit;
      if (!ownFull && this.#occupied < this.#options.maxInstances) break;
      const victim = ownFull ? version.slots.idle[0] : this.#longestIdle();
      const ending = ownFull ? version.slots.ending : this.#ending;
      if (victim !== undefined) {
        victim.version.slots.idle.splice(victim.version.slots.idle.indexOf(victim), 1);
        victim.version.counters.add("evictions");
        // The place passes to this request at once, so that no other can take it while the victim ends.
        this.#take(version);
        await this.#end(victim);
        return true;
      }
      if (ending.size === 0) throw this.#tooMany(version, ownFull);
      await Promise.race(ending);
    }
    this.#take(version);
    return true;
  }

  #take(version: Version): void {
    this.#versions.add(version);
    this.#occupied += 1;
    version.slots.occupied += 1;
  }

  #giveBack(version: Version): void {
    this.#occupied -= 1;
    version.slots.occupied -= 1;
    if (version.slots.occupied === 0) version.slots.onVacant?.();
  }

  #adopt(version: Version, instance: Instance): Slot {
    const { generation } = instance.start;
    const slot: Slot = {
      version,
      instance,
      reuse: {
        kind: "reuse",
        ...(generation === undefined ? {} : { generation }),
        us: 0,
        phases: [],
        waitUs: 0,
        prefetchedPages: 0,
      },
      state: "running",
      idleSinceMs: 0,
    };
    version.slots.all.add(slot);
    instance.onExit(() => {
      if (slot.state !== "idle") return;
      version.slots.idle.splice(version.slots.idle.indexOf(slot), 1);
      void this.#end(slot);
    });
    return slot;
  }

  /** Ends an instance that is in no list; its place is free when the promise resolves. Safe to call again. */
  #end(slot: Slot): Promise<void> {
    const { version } = slot;
    if (!version.slots.all.delete(slot)) return Promise.resolve();
    slot.state = "ending";
    const ended = slot.instance
      .dispose()
      .catch((error: unknown) => {
        this.#options.log.error(
          { err: error, function: version.name, instance: slot.instance.id },
          "an instance could not be ended",
        );
      })
      .then(() => {
        version.slots.ending.delete(ended);
        this.#ending.delete(ended);
        this.#giveBack(version);
      });
    version.slots.ending.add(ended);
    this.#ending.add(ended);
    return ended;
  }

  #longestIdle(): Slot | undefined {
    let found: Slot | undefined;
    for (const { slots } of this.#versions) {
      const slot = slots.idle[0];
      if (slot !== undefined && (found === undefined || slot.idleSinceMs < found.idleSinceMs)) found = slot;
    }
    return found;
  }

  #expire(): void {
    const before = performance.now() - this.#options.keepAliveMs;
    for (const { slots } of this.#versions) {
      while (slots.idle[0] !== undefined && slots.idle[0].idleSinceMs <= before) {
        const slot = slots.idle.shift();
        if (slot !== undefined) void this.#end(slot);
      }
    }
  }

  /** Resolves when no place is taken, or after `timeoutMs`. */
  #vacant(version: Version, timeoutMs: number): Promise<void> {
    if (version.slots.occupied === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        version.slots.onVacant = undefined;
        resolve();
      };
      const timer = setTimeout(done, timeoutMs);
      version.slots.onVacant = done;
    });
  }

  #tooMany(version: Version, ownFull: boolean): ThawError {
    version.counters.add("throttles");
    const limit = ownFull ? version.limit : this.#options.maxInstances;
    return new ThawError("TOO_MANY_INSTANCES", {
      what: `Function "${version.name}" was not started`,
      why: ownFull
        ? `all ${limit} instances that it may have are busy`
        : `all ${limit} instances that this server may have are busy`,
      fix: ownFull
        ? "Try again, or deploy it with a higher --max-instances"
        : "Try again, or start the server with a higher --max-instances",
      details: { limit, scope: ownFull ? "function" : "server" },
    });
  }
}
