/**
 * Instances that nobody uses. Each is in one list of its version, and in one place of one clock:
 *
 *            release                  the plan's step, the budget, pressure, or by hand
 *     running ─────▶ idle ────────────────────────────────────────▶ deflating ─▶ hibernated
 *        ▲            │ ▲                                              │ taken: cancelled │
 *        └────────────┘ └──────────────── waking ◀─────────────────────┼──────────────────┤ the plan, or by hand
 *        └─────────────────────────────────────────────────────────────┴──────────────────┘ taken: the request wakes it
 *
 * The policy says what happens when (policy.ts). The budget is held by hibernating the longest idle first, wherever that saves
 * something, then by ending the longest idle. Deflations of the plan run two at a time, because each keeps a core and the disk busy.
 * What a failing one leaves: a full disk pauses all of them (once logged, 1, 2, 4 … 60 s); a refusal holds for its version; anything
 * else pauses its version.
 */
import { errorText, isThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import { MIB } from "../base/units.js";
import { Backoff } from "./backoff.js";
import type { Budget } from "./budget.js";
import { DueQueue } from "./due.js";
import type { IdlePolicy } from "./policy.js";
import type { Slot } from "./slot.js";
import type { Version } from "./version.js";

/** Hibernating that gives back less than this is not worth its writing, nor the waking. */
const SAVES_BYTES_MIN = 2 * MIB;
/** What a hibernated instance keeps, until one of the function was measured. */
const LEFT_BYTES = MIB;
const DEFLATIONS_AT_ONCE = 2;
/** Measured when it was idle for so long, so many at most before others get a turn. */
const MEASURE_AFTER_MS = 100;
const MEASURES_AT_ONCE = 50;
/** A step of the plan that meets an instance which is being frozen as it goes on is tried again after so long. */
const FREEZING_MS = 100;
/** What is freed for one start others may take first, and again: it is refused after so long. */
const ROOM_MS_MAX = 5_000;
/** Under pressure, how many are hibernated a second. */
const PRESSED_AT_ONCE = 4;

export interface IdleOptions {
  readonly policy: IdlePolicy;
  readonly budget: Budget;
  readonly log: Logger;
  /** First pause after the disk was full. Default 1 s. */
  readonly backoffMs?: number | undefined;
  /** How long a start tries to get room. Default 5 s. */
  readonly roomMs?: number | undefined;
  /** Ends an instance that is in no list; resolves when it is gone. */
  readonly end: (slot: Slot) => Promise<void>;
  /** Those that end now, of all versions; each is taken out when it is gone. */
  readonly ending: ReadonlySet<Promise<void>>;
  /** Somebody may wait for an instance that is hibernated now. True: it was taken. */
  readonly hibernated: (slot: Slot) => boolean;
  /** One of them is on its way to disk no more, whatever became of it. */
  readonly deflated: (version: Version) => void;
}

/** An error of hibernating itself, also where that cost the instance: memory that was half replaced, a before-snapshot hook that never came back. */
export function isOfHibernating(error: unknown): boolean {
  return isThawError(error, "HIBERNATE_FAILED") || isThawError(error, "HIBERNATE_REFUSED");
}

/** See above. */
export class IdleInstances {
  readonly #options: IdleOptions;
  readonly #due = new DueQueue<Slot>((slot) => this.#step(slot));
  /** That have instances in their lists, or had. */
  readonly #versions = new Set<Version>();
  readonly #unmeasured = new Set<Slot>();
  readonly #toDeflate = new Set<Slot>();
  readonly #deflations = new Set<Promise<void>>();
  readonly #disk: Backoff;
  #deflators = 0;
  #measuring: NodeJS.Timeout | undefined;
  #shrinking = false;
  #closed = false;

  constructor(options: IdleOptions) {
    this.#options = options;
    this.#disk = new Backoff(options.backoffMs ?? 1_000, 60_000);
  }

  /** An instance whose request has ended. */
  add(slot: Slot): void {
    const { version } = slot;
    slot.state = "idle";
    slot.measured = false;
    version.slots.idle.push(slot);
    this.#versions.add(version);
    this.renew(slot);
    if (this.#options.budget.limited) this.#measureSoon(slot);
  }

  /** Idle from now on: its plan begins anew. */
  renew(slot: Slot): void {
    const { version } = slot;
    slot.idleSinceMs = performance.now();
    slot.plan = this.#options.policy.decide(version.idleTimes);
    slot.nextStep = 0;
    this.#schedule(slot);
  }

  /** The one that was used last, whose pages are the warmest; unless `still`, one on its way to disk or back when there is no other. */
  take(version: Version, still = false): Slot | undefined {
    const { idle } = version.slots;
    let index = idle.findLastIndex(({ state }) => state === "idle");
    if (index < 0 && !still) index = idle.length - 1;
    const [slot] = index < 0 ? [] : idle.splice(index, 1);
    if (slot !== undefined) slot.state = "running";
    return slot;
  }

  /** The one that was used last of those whose memory is on disk. The request that uses it wakes it. */
  takeHibernated(version: Version): Slot | undefined {
    const slot = version.slots.hibernated.pop();
    if (slot !== undefined) slot.state = "running";
    return slot;
  }

  /** Puts back what {@link takeHibernated} took and nobody used. A step of its plan that came due meanwhile is made up for. */
  putBack(slot: Slot): void {
    slot.state = "hibernated";
    slot.version.slots.hibernated.push(slot);
    this.#schedule(slot);
  }

  /** Takes an instance out of its list, for its end. False when it is in none. */
  remove(slot: Slot): boolean {
    this.#due.remove(slot);
    this.#unmeasured.delete(slot);
    this.#toDeflate.delete(slot);
    const { idle, hibernated } = slot.version.slots;
    const list = slot.state === "hibernated" ? hibernated : idle;
    const index = list.indexOf(slot);
    if (index < 0) return false;
    list.splice(index, 1);
    return true;
  }

  /** Takes all of a version out. */
  removeAll(version: Version): Slot[] {
    this.#versions.delete(version);
    const slots = [...version.slots.idle, ...version.slots.hibernated];
    for (const slot of slots) this.remove(slot);
    return slots;
  }

  /** The one that has been idle for longest, hibernated or not, of `version` or of all. */
  longestIdle(version?: Version): Slot | undefined {
    let found: Slot | undefined;
    for (const { slots } of version === undefined ? this.#versions : [version]) {
      for (const slot of [slots.idle.find(({ freezing }) => freezing === undefined), slots.hibernated[0]]) {
        if (slot !== undefined && (found === undefined || slot.idleSinceMs < found.idleSinceMs)) found = slot;
      }
    }
    return found;
  }

  /** Idle ones that are frozen as they go on, of `version` or of all: each settles when it could be ended. */
  freezing(version?: Version): Promise<void>[] {
    const versions = version === undefined ? this.#versions : [version];
    return [...versions].flatMap(({ slots }) => slots.idle.flatMap((slot) => slot.freezing ?? []));
  }

  close(): void {
    this.#closed = true;
    this.#due.close();
    clearTimeout(this.#measuring);
    this.#toDeflate.clear();
  }

  /** Makes room for `bytes` more and counts them. False when nothing idle is left to give, or when others took for too long what was given. */
  async reserve(bytes: number): Promise<boolean> {
    const { budget, roomMs = ROOM_MS_MAX } = this.#options;
    const endMs = performance.now() + roomMs;
    while (!budget.fits(bytes)) if (performance.now() >= endMs || !(await this.#freeOne())) return false;
    budget.count(bytes);
    return true;
  }

  /** Called while the machine is short of memory. */
  press(): void {
    const slots = this.#worthwhile().sort((a, b) => a.idleSinceMs - b.idleSinceMs);
    for (const slot of slots.slice(0, PRESSED_AT_ONCE)) this.#deflateLater(slot);
  }

  /** Writes the memory of an idle instance to disk. True when it is hibernated then. Rejects with the engine's error. */
  deflate(slot: Slot): Promise<boolean> {
    const deflation = this.#deflate(slot);
    const settled = deflation.then(
      () => undefined,
      () => undefined,
    );
    this.#deflations.add(settled);
    void settled.then(() => {
      this.#deflations.delete(settled);
      this.#options.deflated(slot.version);
    });
    return deflation;
  }

  /** Brings a hibernated instance back ahead of requests. Rejects with the engine's error; it is hibernated again then, if it lives. */
  async wake(slot: Slot): Promise<void> {
    const { version, instance } = slot;
    const { budget } = this.#options;
    version.slots.hibernated.splice(version.slots.hibernated.indexOf(slot), 1);
    slot.state = "waking";
    version.slots.idle.push(slot);
    try {
      await instance.wake();
      version.counters.add("wakes");
      slot.measured = false;
      if (stateOf(slot) === "waking") slot.state = "idle";
    } catch (error) {
      budget.assign(slot, version.leftBytes ?? LEFT_BYTES);
      if (stateOf(slot) === "waking") {
        version.slots.idle.splice(version.slots.idle.indexOf(slot), 1);
        this.putBack(slot);
      }
      throw error;
    }
  }

  /** What it takes to wake it. */
  wakeBytes(slot: Slot): number {
    return Math.max(0, this.#options.budget.estimate(slot.version) - slot.residentBytes);
  }

  /** Measures those of `versions` whose memory is not known. */
  async measure(versions: readonly Version[]): Promise<void> {
    await this.#measureAll(versions.flatMap(({ slots }) => [...slots.all].filter((slot) => !slot.measured)));
  }

  /** A few at a time: one that keeps everybody from looking takes a second. */
  async #measureAll(slots: readonly Slot[]): Promise<void> {
    const next = slots.values();
    const work = async (): Promise<void> => {
      for (const slot of next) await this.#measure(slot);
    };
    await Promise.all(Array.from({ length: 4 }, work));
  }

  #schedule(slot: Slot): void {
    const step = slot.plan[slot.nextStep];
    if (step === undefined || step.afterMs === Number.POSITIVE_INFINITY || this.#closed) this.#due.remove(slot);
    else this.#due.set(slot, slot.idleSinceMs + step.afterMs);
  }

  #step(slot: Slot): void {
    // One that runs is planned anew when it is idle again.
    if (slot.state === "running" || slot.state === "ending") return;
    if (slot.freezing !== undefined) {
      this.#due.set(slot, performance.now() + FREEZING_MS);
      return;
    }
    const action = slot.plan[slot.nextStep]?.action;
    slot.nextStep += 1;
    this.#schedule(slot);
    if (action === "hibernate") this.#deflateLater(slot);
    else if (action === "wake") this.#wakeAhead(slot);
    else if (action === "dispose" && this.remove(slot)) void this.#options.end(slot);
  }

  /** Only when no other instance would take the request anyway. */
  #wakeAhead(slot: Slot): void {
    const { version } = slot;
    if (slot.state !== "hibernated" || version.slots.idle.length + version.slots.running + version.slots.starting > 0) return;
    const { budget, log } = this.#options;
    const bytes = this.wakeBytes(slot);
    if (!budget.fits(bytes)) return;
    budget.assign(slot, slot.residentBytes + bytes);
    this.wake(slot).catch((error: unknown) => {
      log.warn({ err: error, function: version.name, instance: slot.instance.id }, "an instance could not be woken ahead");
    });
  }

  #deflateLater(slot: Slot): void {
    if (this.#closed) return;
    this.#toDeflate.add(slot);
    if (this.#deflators < DEFLATIONS_AT_ONCE) void this.#deflateWaiting();
  }

  async #deflateWaiting(): Promise<void> {
    this.#deflators += 1;
    for (const slot of this.#toDeflate) {
      this.#toDeflate.delete(slot);
      if (!slot.measured) await this.#measure(slot);
      // What fails is told by #failed.
      if (this.#pauseMs(slot) === 0 && this.#saves(slot, slot.dirtyBytes)) await this.deflate(slot).catch(() => undefined);
      if (this.#pauseMs(slot) > 0) this.#postpone(slot, this.#pauseMs(slot));
    }
    this.#deflators -= 1;
  }

  /** What failures have left of a pause. */
  #pauseMs({ version }: Slot): number {
    return Math.max(this.#disk.leftMs, version.deflating.leftMs);
  }

  /** The step is tried again when the pause is over, unless the next one comes first. */
  #postpone(slot: Slot, pauseMs: number): void {
    const before = slot.plan[slot.nextStep - 1];
    const next = slot.plan[slot.nextStep];
    const atMs = performance.now() + pauseMs;
    if (slot.state !== "idle" || before?.action !== "hibernate") return;
    if (next !== undefined && slot.idleSinceMs + next.afterMs <= atMs) return;
    slot.nextStep -= 1;
    if (!this.#closed) this.#due.set(slot, atMs);
  }

  /** Whether hibernating it now is possible and would give something back of `bytes`. */
  #saves({ state, version, freezing, hibernateRefused }: Slot, bytes: number): boolean {
    const { leftBytes = LEFT_BYTES } = version;
    const refused = hibernateRefused ?? version.hibernateRefused;
    return state === "idle" && freezing === undefined && refused === undefined && bytes - leftBytes >= SAVES_BYTES_MIN;
  }

  /** For the budget, which counts all that is private, clean or not. */
  #worthwhile(): Slot[] {
    if (this.#disk.leftMs > 0) return [];
    return [...this.#versions].flatMap((version) =>
      version.deflating.leftMs > 0 ? [] : version.slots.idle.filter((slot) => this.#saves(slot, slot.residentBytes)),
    );
  }

  /** Gives back the memory of one instance. False when there is none whose memory could be given back. */
  async #freeOne(): Promise<boolean> {
    const { end } = this.#options;
    const victim = longestOf(this.#worthwhile());
    if (victim?.instance.alive === false) {
      // Its exit is yet to be told: to put it to sleep would fail at once, and again.
      this.remove(victim);
      await end(victim);
      return true;
    }
    if (victim !== undefined) {
      // An estimate is no reason to write anything.
      if (!victim.measured) await this.#measure(victim);
      else await this.deflate(victim).catch(() => undefined);
      return true;
    }
    if (this.#deflations.size > 0) {
      await Promise.race(this.#deflations);
      return true;
    }
    const longest = this.longestIdle();
    if (longest === undefined || !this.remove(longest)) return (await this.#endings()) || this.#options.budget.giveUpHusk();
    longest.version.counters.add("evictions");
    await end(longest);
    return true;
  }

  /** Instances that end already give theirs back by themselves. */
  async #endings(): Promise<boolean> {
    const freezing = this.freezing();
    const leaving = freezing.length > 0 ? freezing : [...this.#options.ending];
    if (leaving.length === 0) return false;
    await Promise.race(leaving);
    return true;
  }

  async #deflate(slot: Slot): Promise<boolean> {
    const { version, instance } = slot;
    const { budget, hibernated } = this.#options;
    slot.state = "deflating";
    try {
      const report = await instance.hibernate();
      this.#disk.succeed();
      version.deflating.succeed();
      if (report.cancelled) version.counters.add("deflationsCancelled");
      else {
        version.counters.add("hibernations");
        version.leftBytes = report.residentBytes;
      }
      if (stateOf(slot) !== "deflating") return false;
      // Cancelled, or finished after a request had come and gone.
      if (instance.state !== "hibernated") {
        slot.state = "idle";
        slot.measured = false;
        return false;
      }
      budget.assign(slot, report.residentBytes);
      slot.hibernatedBytes = report.hibernatedBytes;
      slot.measured = true;
      version.slots.idle.splice(version.slots.idle.indexOf(slot), 1);
      slot.state = "hibernated";
      if (!hibernated(slot)) {
        version.slots.hibernated.push(slot);
        version.slots.hibernated.sort((a, b) => a.idleSinceMs - b.idleSinceMs);
      }
      return true;
    } catch (error) {
      if (stateOf(slot) === "deflating") slot.state = "idle";
      // It ended meanwhile, which is told elsewhere; unless it had to be ended because of this.
      if (instance.alive || isOfHibernating(error)) this.#failed(slot, error);
      throw error;
    }
  }

  #failed(slot: Slot, error: unknown): void {
    const { log } = this.#options;
    const { version } = slot;
    version.counters.add("hibernateFailures");
    if (isThawError(error, "HIBERNATE_REFUSED") && error.details.scope === "instance") slot.hibernateRefused = errorText(error);
    else if (isThawError(error, "HIBERNATE_REFUSED")) {
      version.hibernateRefused = errorText(error);
      log.info(
        { function: version.name, reason: version.hibernateRefused },
        "the function cannot be hibernated; it is kept warm",
      );
    } else if (isThawError(error, "RESOURCE_EXHAUSTED")) {
      if (this.#disk.failures === 0)
        log.error({ err: error }, "instances cannot be hibernated; they stay warm, and it is tried again later");
      this.#disk.fail();
    } else {
      log.warn({ err: error, function: version.name }, "an instance could not be hibernated");
      version.deflating.fail();
    }
  }

  #measureSoon(slot: Slot): void {
    this.#unmeasured.add(slot);
    this.#measuring ??= setTimeout(() => void this.#measureSome(), MEASURE_AFTER_MS).unref();
  }

  /** After a moment: who is used again at once is not worth the millisecond. */
  async #measureSome(): Promise<void> {
    const settledMs = performance.now() - MEASURE_AFTER_MS / 2;
    const settled = [...this.#unmeasured].filter(({ idleSinceMs }) => idleSinceMs <= settledMs).slice(0, MEASURES_AT_ONCE);
    for (const slot of settled) this.#unmeasured.delete(slot);
    await this.#measureAll(settled.filter(({ state }) => state === "idle"));
    this.#measuring = undefined;
    const [next] = this.#unmeasured;
    if (next !== undefined && !this.#closed) this.#measureSoon(next);
    await this.#shrink();
  }

  async #measure(slot: Slot): Promise<void> {
    const { budget } = this.#options;
    try {
      const { privateBytes, dirtyBytes, hibernatedBytes } = await slot.instance.memory();
      const { state } = slot;
      if (state === "ending" || state === "hibernated") return;
      budget.assign(slot, privateBytes);
      slot.hibernatedBytes = hibernatedBytes;
      slot.dirtyBytes = dirtyBytes;
      slot.measured = state === "idle";
      if (slot.measured) budget.learn(slot.version, privateBytes);
    } catch {
      // It ended meanwhile, and its memory with it; or it keeps everybody from looking: then it counts as all that it may have.
      const { state } = slot;
      if (state === "ending" || state === "hibernated") return;
      if (slot.instance.alive) budget.assign(slot, slot.version.spec.memoryMb * MIB);
      slot.measured = true;
      slot.dirtyBytes = 0;
    }
  }

  /** Instances that grew, or husks that were parked, took more than there is. */
  async #shrink(): Promise<void> {
    const { budget } = this.#options;
    if (this.#shrinking || this.#closed) return;
    this.#shrinking = true;
    try {
      while (budget.exceeded && !this.#closed && (await this.#freeOne())) {}
    } finally {
      this.#shrinking = false;
    }
  }
}

function longestOf(slots: readonly Slot[]): Slot | undefined {
  return slots.reduce<Slot | undefined>(
    (found, slot) => (found === undefined || slot.idleSinceMs < found.idleSinceMs ? slot : found),
    undefined,
  );
}

/** Past an await, where the compiler still believes what was assigned before it. */
function stateOf(slot: Slot): Slot["state"] {
  return slot.state;
}
