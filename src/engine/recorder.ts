/**
 * What a start touched. Some starts record it: everything comes by demand, the kernel's fault-around is off, and after the first
 * answer a scan of the process tells exactly which pages were written and which only read (working-set.md). The next request
 * waits the few milliseconds that this takes. All other starts only have their faults counted, after the answer.
 */
import { crc32 } from "node:zlib";
import { isThawError, ThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import { imageFiles, type PageRun } from "../image/index.js";
import { blockingIsAccounted, diskBytesOf, processFaults } from "./faults.js";
import { hasEnded } from "./has-ended.js";
import type { Husk } from "./husk.js";
import type { LoadedImage, Tracking } from "./images.js";
import type { LiveInstance } from "./instance.js";
import type { Keeper } from "./keeper.js";
import { parseReply } from "./native.js";
import type { Loader, PageCounts, StartFaults } from "./types.js";

const USERFAULTFD = "/dev/userfaultfd";
/** The kernel's ticks in /proc, whatever its own are: USER_HZ is 100 on x86-64. */
const TICK_MS = 10;

/** Present pages of an instance. */
export interface PresentPages {
  readonly counts: PageCounts;
  readonly written: readonly PageRun[];
  readonly read: readonly PageRun[];
  /** Those of them that were mapped 2 MiB at a time. */
  readonly huge: readonly PageRun[];
}

interface Followed {
  readonly loaded: LoadedImage;
  readonly recording: Tracking | undefined;
}

/** Of a long event no more is looked at (characters, where it is text), and its length. */
const EVENT_BYTES = 65_536;

/** Tells events apart, and nothing of what they say. */
function digestOf(event: Buffer | string): number {
  return crc32(event.slice(0, EVENT_BYTES), event.length);
}

function runsOf(value: unknown): PageRun[] {
  const list = value as (string | number)[];
  const runs: PageRun[] = [];
  for (let index = 0; index + 1 < list.length; index += 2)
    runs.push({ address: BigInt(list[index] ?? 0), pages: Number(list[index + 1]) });
  return runs;
}

/** See above. */
export class Recorder {
  readonly #followed = new Map<LiveInstance, Followed>();
  /** Whose memory is yet to be let go of. */
  readonly #unwatching = new WeakMap<LiveInstance, Promise<void>>();
  /** It was told that sets cannot be recorded, and none was since. */
  #failing = false;

  private constructor(
    private readonly keeper: Keeper,
    private readonly extractor: string,
    private readonly log: Logger,
    /** The keeper's /dev/userfaultfd, by which the pager serves faults; undefined where there is none. */
    readonly userfaultfd: number | undefined,
    /** The same; undefined where the kernel cannot record exactly. */
    readonly device: number | undefined,
  ) {}

  /** Finds out, once, whether this kernel can record exactly. */
  static async open(keeper: Keeper, extractor: string, log: Logger): Promise<Recorder> {
    const { stdout } = await keeper.helper([extractor, "tracking"]);
    const reply = parseReply(stdout);
    const device = reply.served === true ? await keeper.openFile(USERFAULTFD) : undefined;
    if (reply.ok) return new Recorder(keeper, extractor, log, device, device);
    log.warn({ why: reply.why }, "working sets cannot be recorded exactly: pages beside those that a function touches count too");
    return new Recorder(keeper, extractor, log, device, undefined);
  }

  /** What is present now, by source (PAGEMAP_SCAN from outside). */
  async scan(instance: LiveInstance): Promise<PresentPages> {
    const argv = [this.extractor, "scan", String(instance.hostPid)];
    argv.push(instance.origin === undefined ? "" : imageFiles(instance.origin.dir).pages);
    if (instance.base !== undefined) argv.push(instance.base.path);
    const { stdout } = await this.keeper.helper(argv);
    const reply = parseReply(stdout);
    if (!reply.ok && (await hasEnded(instance, reply))) throw instance.exitError();
    if (!reply.ok)
      throw new ThawError("FREEZE_FAILED", {
        what: `the pages of instance ${instance.id} could not be counted`,
        why: String(reply.why),
      });
    return {
      counts: reply.counts as PageCounts,
      written: runsOf(reply.written),
      read: [...runsOf(reply.image), ...runsOf(reply.file), ...runsOf(reply.zeroes)],
      huge: runsOf(reply.huge),
    };
  }

  /** How this start records; undefined when it does not. Other loaders do not use the set; a parked husk was made for it or was not. */
  begin(loaded: LoadedImage, loader: Loader, { husk, parked }: { husk: Husk; parked: boolean }): Tracking | undefined {
    if (loader !== "splice" || (parked && !husk.tracked) || !loaded.sets.claim()) return undefined;
    return { device: this.device };
  }

  /** From the start of an instance to its first answer or its end. */
  follow(instance: LiveInstance, loaded: LoadedImage, recording: Tracking | undefined): void {
    // An eager start has every page present before anybody asks for one: there is nothing to count.
    if (instance.start.loader === "eager") {
      instance.starting.counted(undefined);
      return;
    }
    this.#followed.set(instance, { loaded, recording });
    instance.starting.countLater();
  }

  /** A promise while the next request must wait: the scan would see what it touches. */
  firstAnswer(instance: LiveInstance, event: Buffer | string): Promise<void> | undefined {
    const followed = this.#followed.get(instance);
    if (followed === undefined) return undefined;
    this.#followed.delete(instance);
    const { loaded, recording } = followed;
    if (recording !== undefined) return this.#record(instance, loaded, recording, event);
    if (instance.husk.tracked) this.#unwatch(instance);
    // The answer goes out first. Whoever ends the instance at once waits for the count, which takes 20 us.
    instance.beforeNext(() => this.#count(instance, loaded, event));
    return undefined;
  }

  /**
   * Before a freeze or a hibernation: neither can have a process whose memory is watched, and no answer has come to record. A promise while it is; rejects with
   * KEEPER_FAILED where the process keeps the kernel from letting go.
   */
  abandon(instance: LiveInstance): Promise<void> | undefined {
    const followed = this.#followed.get(instance);
    if (followed !== undefined) {
      if (followed.recording !== undefined || instance.husk.tracked) this.#unwatch(instance);
      this.ended(instance);
    }
    return this.#unwatching.get(instance);
  }

  #unwatch(instance: LiveInstance): void {
    const unwatched = this.keeper.closeUffd(instance.id, instance.hostPid).finally(() => this.#unwatching.delete(instance));
    unwatched.catch(() => undefined);
    this.#unwatching.set(instance, unwatched);
  }

  /** Ended without an answer. */
  ended(instance: LiveInstance): void {
    const followed = this.#followed.get(instance);
    this.#followed.delete(instance);
    if (followed?.recording !== undefined) followed.loaded.sets.release();
    instance.starting.counted(undefined);
  }

  #count(instance: LiveInstance, loaded: LoadedImage, event: Buffer | string): void {
    const faults = faultsOf(instance);
    const { sets } = loaded;
    // The set's model of faults is one of the kernel's own paging, with its fault-around and read-ahead.
    const known = instance.start.loader === "splice" || instance.start.loader === "lazy";
    const bound = !known || faults === undefined ? undefined : sets.bound(faults, instance.start.husk ?? "fresh");
    if (faults !== undefined) instance.start = { ...instance.start, faults };
    if (bound === undefined) {
      instance.starting.counted(faults);
      return;
    }
    const tell = (outside: number): void => {
      sets.note(outside, digestOf(event));
      instance.start = { ...instance.start, faultsOutside: outside };
      instance.starting.counted(faults);
    };
    if (!sets.scanDue(bound)) {
      tell(bound);
      return;
    }
    const ahead = instance.start.husk !== "generic" && instance.start.husk !== "fresh";
    this.scan(instance).then(
      // Behind the next request it would see what that one touches.
      (present) => tell(instance.untouchedSince(1) ? Math.max(bound, sets.outsideOf(present, ahead)) : bound),
      // The instance ended first.
      () => tell(bound),
    );
  }

  async #record(instance: LiveInstance, loaded: LoadedImage, how: Tracking, request: Buffer | string): Promise<void> {
    const faults = faultsOf(instance);
    if (faults !== undefined) instance.start = { ...instance.start, faults };
    instance.starting.counted(faults);
    try {
      const { written, read } = await this.scan(instance).finally(() => {
        // From here on it runs at full speed, and can be frozen.
        if (how.device !== undefined) this.#unwatch(instance);
      });
      if (loaded.closed || faults === undefined) loaded.sets.release();
      else {
        const exact = how.device !== undefined;
        const { husk, rehearsed } = instance;
        const event = rehearsed ? undefined : digestOf(request);
        await loaded.sets.add({
          written,
          read,
          faults: faults.minor + faults.major,
          exact,
          parked: husk.tracked,
          rehearsed,
          event,
        });
        this.#failing = false;
      }
    } catch (error) {
      loaded.sets.release();
      // One that ends meanwhile fails the scan. That is no failure: the next start records.
      void hasEnded(instance).then((ended) => {
        if (!ended || !isThawError(error)) this.#failed(error, loaded);
      });
    }
  }

  /** Told once until it goes well again: where the disk is full, each start of each image fails so. */
  #failed(error: unknown, loaded: LoadedImage): void {
    // An image that was removed meanwhile has no set any more.
    if (this.#failing || this.keeper.lost || loaded.closed) return;
    this.#failing = true;
    this.log.warn(
      { err: error, image: loaded.image.id },
      "the working set could not be recorded; starts of this image take more faults until it is",
    );
  }
}

/** Since its husk was ready. */
function faultsOf(instance: LiveInstance): StartFaults | undefined {
  const now = processFaults(instance.hostPid);
  if (now === undefined) return undefined;
  const before = instance.husk.faultsBefore;
  const major = now.major - before.major;
  const blockedMs = (now.blockedTicks - before.blockedTicks) * TICK_MS;
  return {
    minor: now.minor - before.minor,
    major,
    // Nothing that it waited for, nothing that it read; before its start a husk reads nothing.
    diskBytes: major === 0 ? 0 : diskBytesOf(instance.hostPid),
    ...(major === 0 || blockingIsAccounted() ? { blockedMs } : {}),
  };
}
