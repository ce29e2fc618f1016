/**
 * One wake, watched: from the hibernation until the first request is answered a helper (native/watch.c) holds a userfaultfd that keeps the
 * kernel from mapping what was not asked for, and then tells what is present: what was touched, and nothing else. Such a wake is slower,
 * because each page costs a fault of its own.
 */
import type { Logger } from "../base/log.js";
import { CONTROL_FD } from "../image/index.js";
import type { Keeper } from "./keeper.js";
import { parseReply } from "./native.js";

/** Each is a process, for as long as its instance sleeps. Others are watched later. */
const WATCHES_MAX = 32;
const running = new WeakMap<Keeper, number>();

/** What a watched wake touched, as the extractor tells it. */
export interface Touches {
  readonly touched: unknown;
  /** What of `touched` was written. */
  readonly written: unknown;
  readonly files: unknown;
}

/** What watching needs of the engine. */
export interface WatchTools {
  readonly keeper: Keeper;
  readonly extractor: string;
  readonly log: Logger;
}

/** See above. */
export class WakeWatch {
  readonly #end = new AbortController();
  readonly #told: Promise<(Touches & { readonly armedNs: bigint }) | undefined>;

  private constructor(tools: WatchTools, pid: number, file: number) {
    this.#told = this.#run(tools, pid, file);
  }

  /** Undefined while too many others are watched. @param file that holds the memory of the hibernated process */
  static begin(tools: WatchTools, pid: number, file: number): WakeWatch | undefined {
    return (running.get(tools.keeper) ?? 0) < WATCHES_MAX ? new WakeWatch(tools, pid, file) : undefined;
  }

  /** Ends it. What was touched, if the wake (CLOCK_MONOTONIC) was watched from its beginning. Never rejects. */
  async end(wokenNs: bigint | undefined): Promise<Touches | undefined> {
    this.#end.abort();
    const told = await this.#told;
    return told !== undefined && wokenNs !== undefined && told.armedNs <= wokenNs ? told : undefined;
  }

  async #run(
    { keeper, extractor, log }: WatchTools,
    pid: number,
    file: number,
  ): Promise<(Touches & { readonly armedNs: bigint }) | undefined> {
    running.set(keeper, (running.get(keeper) ?? 0) + 1);
    try {
      const argv = [extractor, "watch", String(pid), String(CONTROL_FD)];
      const { stdout } = await keeper.helper(argv, { files: [file], cancel: this.#end.signal });
      // Told to end before it had begun.
      if (stdout.length === 0) return undefined;
      const reply = parseReply(stdout);
      if (reply.ok)
        return { touched: reply.touched, written: reply.written, files: reply.files, armedNs: BigInt(Number(reply.armedNs)) };
      log.debug({ pid, why: reply.why }, "a wake is not watched");
    } catch (error) {
      log.debug({ pid, err: error }, "a wake is not watched");
    } finally {
      running.set(keeper, (running.get(keeper) ?? 1) - 1);
    }
    return undefined;
  }
}
