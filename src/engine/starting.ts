/** How an instance came about: what is told of its start, and who waits for that to be over. */
import type { ThawError } from "../base/errors.js";
import type { Told } from "./parts.js";
import type { StartFaults, StartResult } from "./types.js";

/** Of one instance. */
export class Starting {
  /** Why it failed. */
  error: ThawError | undefined;
  #result: StartResult;
  #rest: (() => Partial<StartResult>) | undefined;
  /** Undefined once it is over. */
  #waiting: (() => void)[] | undefined;
  #faultsCounted: Promise<StartFaults | undefined> = Promise.resolve(undefined);
  #follow: (() => void) | undefined;
  #coldKnown: Promise<void> | undefined;
  #tellFaults: ((faults: StartFaults | undefined) => void) | undefined;

  constructor(result: StartResult) {
    this.#result = result;
  }

  get result(): StartResult {
    const rest = this.#rest;
    this.#rest = undefined;
    if (rest !== undefined) this.#result = { ...this.#result, ...rest() };
    return this.#result;
  }

  set result(result: StartResult) {
    this.#result = result;
  }

  /** What else is to be told; reckoned when somebody wants to know, because no answer should wait for it. */
  completedBy(rest: () => Partial<StartResult>): void {
    this.#rest = rest;
  }

  /** Not over before `begin` was told. `failed` comes before those who wait. */
  with(begin: (told: Told<void>) => void, failed: (error: ThawError) => void): void {
    this.#waiting = [];
    begin((error) => {
      const waiting = this.#waiting ?? [];
      this.#waiting = undefined;
      this.error = error;
      if (error !== undefined) failed(error);
      for (const goOn of waiting) goOn();
    });
  }

  /** Whether it is over, and went well. Also where nothing had to be waited for. */
  get succeeded(): boolean {
    return this.#waiting === undefined && this.error === undefined;
  }

  /** Calls when it is over, be it well or not; at once when it is. */
  whenOver(goOn: () => void): void {
    if (this.#waiting === undefined) goOn();
    else this.#waiting.push(goOn);
  }

  /**
   * Whoever follows its way is told by `follow`, and nothing of that may wait in front of its first answer: it is for the instance to call, once that is out,
   * before a freeze or a hibernation that comes sooner, or never when no answer comes.
   */
  followedBy(follow: () => void): void {
    this.countLater();
    this.#follow = follow;
  }

  /** What {@link Starting.followedBy} left, once. */
  takeFollow(): (() => void) | undefined {
    const follow = this.#follow;
    this.#follow = undefined;
    return follow;
  }

  /** The result will tell how many of the pages that were asked for ahead had to come from disk. */
  cold(asked: Promise<number> | undefined): void {
    this.#coldKnown = asked?.then((pages) => {
      if (pages >= 0) this.result = { ...this.result, coldPages: pages };
    });
  }

  /** Its faults will be told by {@link counted}. */
  countLater(): void {
    if (this.#tellFaults !== undefined) return;
    this.#faultsCounted = new Promise((resolve) => {
      this.#tellFaults = resolve;
    });
  }

  /** They are known, or never will be. */
  counted(faults: StartFaults | undefined): void {
    this.#tellFaults?.(faults);
  }

  async faults(): Promise<StartFaults | undefined> {
    await this.#coldKnown;
    return this.#faultsCounted;
  }
}
