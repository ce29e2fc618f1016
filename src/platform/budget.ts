/**
 * The memory budget: private resident bytes of all instances and of husks that wait in pools, kept below a limit. What an instance
 * takes is known from measuring it when it is idle; one that starts, wakes or runs counts with the most that its function was seen to
 * take lately, before that with the anonymous memory of its image, before that with its memory limit.
 */
import { MIB } from "../base/units.js";
import type { Engine } from "../engine/types.js";
import type { Slot } from "./slot.js";
import type { Version } from "./version.js";

/** Of the budget, what husks may take that are parked for one image each: the rest is for starts that find none. */
const PARKED_PART = 0.75;

/** See above. */
export class Budget {
  #instancesBytes = 0;

  constructor(
    private readonly engine: Engine,
    /** Infinity: none. */
    readonly limitBytes: number,
  ) {
    if (this.limited) engine.parkWithin(() => this.limitBytes * PARKED_PART - this.#instancesBytes);
  }

  get limited(): boolean {
    return this.limitBytes !== Number.POSITIVE_INFINITY;
  }

  get usedBytes(): number {
    return this.#instancesBytes + this.huskBytes;
  }

  /** Of that, what husks that wait in pools take. */
  get huskBytes(): number {
    return this.engine.stats().huskBytes;
  }

  /** Whether `bytes` more fit. The first instance always does: a limit that no function fits into would serve nobody. */
  fits(bytes: number): boolean {
    return !this.limited || this.#instancesBytes === 0 || this.usedBytes + bytes <= this.limitBytes;
  }

  /** Ends a husk that waits for a function. False when there is none. */
  giveUpHusk(): boolean {
    return this.engine.giveUpHusk();
  }

  get exceeded(): boolean {
    return this.limited && this.usedBytes > this.limitBytes;
  }

  /** Counts `bytes` for something that is not a slot yet; negative: gives them back. */
  count(bytes: number): void {
    this.#instancesBytes += bytes;
  }

  /** What an instance of it will take, warm. */
  estimate(version: Version): number {
    return version.warmBytes ?? version.generations.favourite?.report.anonymousBytes ?? version.spec.memoryMb * MIB;
  }

  /** What `slot` takes from now on. */
  assign(slot: Slot, residentBytes: number): void {
    this.#instancesBytes += residentBytes - slot.residentBytes;
    slot.residentBytes = residentBytes;
  }

  /** A warm instance of it was measured: the most of late counts, and is forgotten by and by. */
  learn(version: Version, residentBytes: number): void {
    const before = version.warmBytes ?? 0;
    version.warmBytes = Math.max(residentBytes, Math.round((7 * before + residentBytes) / 8));
  }
}
