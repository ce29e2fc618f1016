/**
 * Husks kept ready. A husk (husk.ts) is advanced through stages, and every stage narrows what it can become:
 *
 *   generic      sandbox, no new privileges, seccomp         any function of its runtime
 *   runtime      interpreter's files mapped                  any image with the same runtime key
 *   image        all of one image mapped                     that image, that loader
 *   prefaulted   its working set copied and mapped           that image, that loader
 *
 * Pools are refilled in the background, two at a time, while nothing starts (quiet.ts); one that is empty at once. Nothing here is on the path of a request except {@link HuskPool.take}.
 */
import { readFileSync } from "node:fs";
import { monotonicNs, nowMs } from "../base/clock.js";
import { type ErrorCode, errorText, ThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import { PAGE_BYTES } from "../base/units.js";
import { choosePid } from "./choose-pid.js";
import { NO_FAULTS, processFaults } from "./faults.js";
import { Husk } from "./husk.js";
import type { Keeper } from "./keeper.js";
import { usBetween } from "./parts.js";
import { ASK_MS, Quiet } from "./quiet.js";
import { runStage, type StageStep } from "./stages.js";
import type { HuskLevel } from "./types.js";

const REFILLS_AT_ONCE = 2;
/** Of /tmp in a pooled husk. */
export const DEFAULT_TMP_MB = 512;
/**
 * Host uids and gids of functions, which their user namespaces map to 1000. No two living sandboxes share one: the kernel counts
 * inotify instances, pipe buffers, pending signals and locked memory by user, so one function could use up another's.
 */
const FUNCTION_UID = 900_000;
const FUNCTION_UIDS = 50_000;
const RETRY_MS = 1_000;
/** An interpreter that was upgraded stays so: until somebody calls a function, and its image is made anew, each try fails. */
const RETRY_MS_MAX = 60_000;
const LASTING: readonly ErrorCode[] = ["IMAGE_MISMATCH", "IMAGE_DAMAGED"];

interface PoolSpec {
  readonly level: HuskLevel;
  readonly template: number;
  /** Asked for each husk anew: programs improve once a working set is recorded. */
  readonly steps: () => readonly StageStep[];
  /** Pids that its husks must not have. */
  readonly avoid: ReadonlySet<number>;
  count: number;
}

interface Pool {
  spec: PoolSpec;
  /** In the order in which they are taken; those that are outdated come last. */
  readonly ready: Husk[];
  /** What its last husk took. */
  bytes: number;
  making: number;
  failedUntil: number;
  lastingFailures: number;
}

/** Totals for {@link EngineStats}. */
export interface PoolTotals {
  readonly made: number;
  readonly us: number;
}

/** Husks that wait, by the programs that they have behind them; refilled while nobody waits for a start. */
export class HuskPool {
  private readonly pools = new Map<string, Pool>();
  /** Of those that wait. */
  private readonly outdated = new WeakSet<Husk>();
  private readonly waiters: { key: string; resolve: () => void }[] = [];
  private busy = 0;
  private made = 0;
  private nextUid = 0;
  /** Of living sandboxes, counted from the first. */
  private readonly uids = new Set<number>();
  private us = 0;
  private closed = false;
  private refillTimer: NodeJS.Timeout | undefined;
  private roomTimer: NodeJS.Timeout | undefined;
  private readonly quiet = new Quiet();
  private lastFailure: ThawError | undefined;
  private allowance = (): number => Number.POSITIVE_INFINITY;

  constructor(
    private readonly keeper: Keeper,
    private readonly base: StageStep,
    private readonly log: Logger,
    private readonly uidCount = FUNCTION_UIDS,
  ) {}

  get totals(): PoolTotals {
    return { made: this.made, us: this.us };
  }

  countByLevel(): Record<HuskLevel, number> {
    const counts: Record<HuskLevel, number> = { generic: 0, runtime: 0, image: 0, prefaulted: 0 };
    for (const pool of this.pools.values()) counts[pool.spec.level] += pool.ready.length;
    return counts;
  }

  /** Of those that wait; what makes one measures it. */
  get privateBytes(): number {
    let sum = 0;
    for (const pool of this.pools.values()) for (const husk of pool.ready) sum += husk.privateBytes;
    return sum;
  }

  /** Husks that are parked for one image are made as long as all of them take less than `allowance` says, in bytes; asked before each. */
  parkWithin(allowance: () => number): void {
    this.allowance = allowance;
  }

  /** How many wait in that pool. */
  readyCount(key: string): number {
    return this.pools.get(key)?.ready.length ?? 0;
  }

  /** Lets one go that is parked for one image, of those of which most wait. False when there is none. */
  giveUp(): boolean {
    const parked = [...this.pools.values()].filter(isParked);
    const fullest = parked.reduce<Pool | undefined>(
      (most, pool) => (pool.ready.length > (most?.ready.length ?? 0) ? pool : most),
      undefined,
    );
    const husk = fullest?.ready.pop();
    this.drop(husk);
    return husk !== undefined;
  }

  /** Sets how many husks a pool keeps; surplus ones are let go. */
  target(key: string, spec: PoolSpec): void {
    const pool = this.pools.get(key) ?? { spec, ready: [], bytes: 0, making: 0, failedUntil: 0, lastingFailures: 0 };
    if (pool.lastingFailures > 0) this.later(pool);
    pool.lastingFailures = 0;
    pool.spec = spec;
    this.pools.set(key, pool);
    while (pool.ready.length > spec.count) this.drop(pool.ready.pop());
    if (spec.count === 0) this.pools.delete(key);
    this.refill();
  }

  targetCount(key: string): number {
    return this.pools.get(key)?.spec.count ?? 0;
  }

  /**
   * Takes a husk that `fits`, or undefined at once. The pool is refilled once its process says something, or {@link HuskPool.refillSoon} was called: not here,
   * where the request waits for every microsecond.
   */
  take(key: string, fits: (husk: Husk) => boolean = () => true): Husk | undefined {
    const pool = this.pools.get(key);
    if (pool === undefined) return undefined;
    const index = pool.ready.findIndex((husk) => husk.exit === undefined && fits(husk));
    if (index < 0) return undefined;
    const [husk] = pool.ready.splice(index, 1);
    this.quiet.began(nowMs());
    husk?.onSign(() => {
      this.quiet.spoke(nowMs());
      this.refillSoon();
    });
    return husk;
  }

  /** For whoever took one, when the start that it was taken for is on its way. */
  refillSoon(): void {
    this.refillLater(ASK_MS);
  }

  private refillLater(ms: number): void {
    this.refillTimer ??= setTimeout(() => {
      this.refillTimer = undefined;
      this.refill();
    }, ms);
  }

  /** Whether one more fits into the allowance; for any number of pools, of which there are as many as functions. */
  private room(): (pool: Pool) => boolean {
    let left = this.allowance();
    if (left === Number.POSITIVE_INFINITY) return () => true;
    for (const pool of this.pools.values()) {
      if (!isParked(pool)) continue;
      left -= pool.making * pool.bytes;
      for (const husk of pool.ready) if (!this.outdated.has(husk)) left -= husk.privateBytes;
    }
    return (pool) => !isParked(pool) || pool.bytes < left;
  }

  /** Resolves when the pool has a husk, or after `ms`. */
  async waitFor(key: string, ms: number): Promise<void> {
    const pool = this.pools.get(key);
    if (pool === undefined || pool.ready.length > 0 || ms <= 0) return;
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      const waiter = { key, resolve };
      timer = setTimeout(() => {
        // Else the next husk would wake somebody who has left, and not the one behind.
        this.waiters.splice(this.waiters.indexOf(waiter), 1);
        resolve();
      }, ms);
      this.waiters.push(waiter);
    });
    clearTimeout(timer);
  }

  /** Others take the place of those that are `outdated`, one by one: until then these serve. */
  renew(key: string, outdated: (husk: Husk) => boolean): void {
    const pool = this.pools.get(key);
    if (pool === undefined) return;
    for (const husk of pool.ready.filter(outdated)) this.outdated.add(husk);
    pool.ready.sort((a, b) => Number(this.outdated.has(a)) - Number(this.outdated.has(b)));
    this.refill();
  }

  /** A husk for anything of this runtime: pooled if it may be and there is one, else made. */
  async generic(
    template: number,
    avoid: ReadonlySet<number>,
    tmpMb: number,
    mayPool: boolean,
  ): Promise<{ husk: Husk; pooled: boolean }> {
    const fits = (husk: Husk): boolean => !avoid.has(husk.pid);
    const pooled = mayPool && tmpMb === DEFAULT_TMP_MB ? this.take(genericKey(template), fits) : undefined;
    if (pooled !== undefined) this.refillSoon();
    const husk = pooled ?? (await this.make(template, [], "generic", avoid, tmpMb));
    return { husk, pooled: pooled !== undefined };
  }

  /** Makes one husk and takes it through `steps`. */
  async make(
    template: number,
    steps: readonly StageStep[],
    level: HuskLevel,
    avoid: ReadonlySet<number>,
    tmpMb = DEFAULT_TMP_MB,
  ): Promise<Husk> {
    const began = monotonicNs();
    const husk = new Husk(choosePid(avoid));
    const uid = this.takeUid();
    const making = this.keeper.husk({ template, pid: husk.pid, tmpMb, uid: FUNCTION_UID + uid }, husk);
    husk.id = making.id;
    void husk.gone().then(() => this.uids.delete(uid));
    making.ready.catch(() => this.uids.delete(uid));
    husk.host = await making.ready;
    try {
      for (const step of [this.base, ...steps]) await runStage(this.keeper, husk, step);
    } catch (error) {
      this.keeper.kill(husk.id);
      await husk.gone();
      throw error;
    }
    husk.level = level;
    husk.faultsBefore = processFaults(husk.host.pid) ?? NO_FAULTS;
    husk.privateBytes = privateBytes(husk.host.pid);
    husk.madeUs = usBetween(began, monotonicNs());
    this.made++;
    this.us += husk.madeUs;
    return husk;
  }

  /** In turn, so that one which was used a moment ago rests. RESOURCE_EXHAUSTED when all are taken. */
  private takeUid(): number {
    for (let tried = 0; tried < this.uidCount; tried++) {
      const uid = this.nextUid++ % this.uidCount;
      if (this.uids.has(uid)) continue;
      this.uids.add(uid);
      return uid;
    }
    throw new ThawError("RESOURCE_EXHAUSTED", {
      what: "no sandbox could be made",
      why: `all ${this.uidCount} user ids of sandboxes are in use`,
      fix: "let instances end, or park fewer husks",
    });
  }

  drop(husk: Husk | undefined): void {
    if (husk !== undefined && husk.exit === undefined) this.keeper.kill(husk.id);
  }

  /** Resolves when every pool is full; RESOURCE_EXHAUSTED after `timeoutMs`, with the last reason. */
  async full(timeoutMs: number): Promise<void> {
    const end = Date.now() + timeoutMs;
    for (;;) {
      const hasRoom = this.room();
      const lacking = [...this.pools].filter(([, pool]) => this.upToDate(pool) < pool.spec.count && hasRoom(pool));
      if (lacking.length === 0) return;
      if (Date.now() >= end) {
        throw new ThawError("RESOURCE_EXHAUSTED", {
          what: `the pools did not fill within ${timeoutMs} ms (${lacking.map(([key]) => key).join(", ")})`,
          why: this.lastFailure?.message ?? "making husks takes longer",
        });
      }
      this.refill();
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.refillTimer);
    clearTimeout(this.roomTimer);
    for (const pool of this.pools.values()) for (const husk of pool.ready.splice(0)) this.drop(husk);
    this.pools.clear();
    for (const waiter of this.waiters.splice(0)) waiter.resolve();
  }

  /** How many of its husks need not be made anew. */
  private upToDate({ ready }: Pool): number {
    return ready.filter((husk) => !this.outdated.has(husk)).length;
  }

  private refill(): void {
    if (this.closed) return;
    const now = Date.now();
    // The emptiest pool first, and before it any that somebody waits for.
    const awaited = new Set(this.waiters.map(({ key }) => key));
    const rank = ([key, pool]: [string, Pool]): number => (awaited.has(key) ? -1 : pool.ready.length + pool.making);
    const due = [...this.pools].filter(
      ([, pool]) => this.upToDate(pool) + pool.making < pool.spec.count && pool.failedUntil <= now,
    );
    const hasRoom = this.room();
    const lacking = due.filter(([, pool]) => hasRoom(pool)).sort((a, b) => rank(a) - rank(b));
    if (lacking.length < due.length) this.refillWhenRoom();
    if (lacking.length === 0) this.quiet.filled(nowMs());
    const waitMs = this.quiet.waitMs(nowMs());
    if (waitMs > 0 && lacking.some(([, pool]) => pool.ready.length > 0)) this.refillLater(waitMs);
    for (const [key, pool] of lacking) {
      if (this.busy >= REFILLS_AT_ONCE) return;
      if (waitMs === 0 || pool.ready.length === 0) void this.refillOne(key, pool);
    }
  }

  private async refillOne(key: string, pool: Pool): Promise<void> {
    this.busy++;
    pool.making++;
    const { spec } = pool;
    try {
      const husk = await this.make(spec.template, spec.steps(), spec.level, spec.avoid);
      if (this.closed || this.pools.get(key) !== pool || pool.spec !== spec || this.upToDate(pool) >= spec.count) this.drop(husk);
      else {
        pool.lastingFailures = 0;
        pool.bytes = husk.privateBytes;
        pool.ready.splice(this.upToDate(pool), 0, husk);
        if (pool.ready.length > spec.count) this.drop(pool.ready.pop());
        void husk.gone().then(() => this.buried(pool, husk));
        const index = this.waiters.findIndex((waiter) => waiter.key === key);
        if (index >= 0) this.waiters.splice(index, 1)[0]?.resolve();
      }
    } catch (error) {
      // Whose programs are another image's by now, because its own is being removed, is simply made anew.
      if (!this.closed && this.pools.get(key) === pool && pool.spec === spec) {
        this.lastFailure =
          error instanceof ThawError
            ? error
            : new ThawError("SANDBOX_FAILED", { what: "a husk could not be made", why: errorText(error), cause: error });
        const waitMs = Math.min(RETRY_MS * 2 ** pool.lastingFailures, RETRY_MS_MAX);
        if (!this.keeper.lost)
          this.log.warn({ err: this.lastFailure, pool: key }, `a pool could not be refilled; trying again in ${waitMs / 1000} s`);
        pool.lastingFailures = LASTING.includes(this.lastFailure.code) ? pool.lastingFailures + 1 : 0;
        this.later(pool, waitMs);
      }
    } finally {
      this.busy--;
      pool.making--;
      this.refill();
    }
  }

  /** A husk that was killed while it waited would else keep its place for ever. */
  private buried(pool: Pool, husk: Husk): void {
    const index = pool.ready.indexOf(husk);
    if (index < 0 || this.closed) return;
    pool.ready.splice(index, 1);
    this.later(pool);
  }

  /** What the allowance has no room for is tried again, by one timer for all. */
  private refillWhenRoom(): void {
    this.roomTimer ??= setTimeout(() => {
      this.roomTimer = undefined;
      this.refill();
    }, RETRY_MS).unref();
  }

  private later(pool: Pool, waitMs = RETRY_MS): void {
    pool.failedUntil = Date.now() + waitMs;
    // A timer may fire a moment before its time by the other clock.
    setTimeout(() => this.refill(), waitMs + 2).unref();
  }
}

function isParked({ spec: { level } }: Pool): boolean {
  return level === "image" || level === "prefaulted";
}

/** The pool of a template's generic husks. */
export function genericKey(template: number): string {
  return `generic:${template}`;
}

/** Anonymous and copied pages of a process, in bytes; 0 when it is gone. A tenth of what asking for smaps would cost. */
function privateBytes(pid: number): number {
  try {
    const [, resident = 0, shared = 0] = readFileSync(`/proc/${pid}/statm`, "utf8").split(" ").map(Number);
    return (resident - shared) * PAGE_BYTES;
  } catch {
    return 0;
  }
}
