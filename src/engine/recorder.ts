/**
 * Recording working sets: after the first answer of each of the first two instances of an image, what is present in the instance is what the invocation
 * touched (REAP §5; the kernel's fault-around makes the read set larger than it is). The next request waits the few
 * milliseconds that it takes.
 */
import { ThawError } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import { imageFiles, type PageRun } from "../image/index.js";
import { minorFaults } from "./husk-pool.js";
import type { LoadedImage } from "./images.js";
import type { LiveInstance } from "./instance.js";
import type { Keeper } from "./keeper.js";
import { parseReply } from "./native.js";
import type { PageCounts } from "./types.js";

/** Present pages of an instance. */
export interface PresentPages {
  readonly counts: PageCounts;
  readonly written: readonly PageRun[];
  readonly read: readonly PageRun[];
}

function runsOf(value: unknown): PageRun[] {
  const list = value as (string | number)[];
  const runs: PageRun[] = [];
  for (let index = 0; index + 1 < list.length; index += 2)
    runs.push({ address: BigInt(list[index] ?? 0), pages: Number(list[index + 1]) });
  return runs;
}

export class Recorder {
  readonly #recording = new Set<LoadedImage>();

  constructor(
    private readonly keeper: Keeper,
    private readonly extractor: string,
    private readonly log: Logger,
  ) {}

  /** What is present now, by source (PAGEMAP_SCAN from outside). */
  async scan(instance: LiveInstance): Promise<PresentPages> {
    const argv = [this.extractor, "scan", String(instance.hostPid)];
    argv.push(instance.origin === undefined ? "" : imageFiles(instance.origin.dir).pages);
    if (instance.base !== undefined) argv.push(instance.base.path);
    const { stdout } = await this.keeper.helper(argv);
    const reply = parseReply(stdout);
    if (!reply.ok)
      throw new ThawError("FREEZE_FAILED", {
        what: `the pages of instance ${instance.id} could not be counted`,
        why: String(reply.why),
      });
    return {
      counts: reply.counts as PageCounts,
      written: runsOf(reply.written),
      read: [...runsOf(reply.image), ...runsOf(reply.file)],
    };
  }

  /** Undefined when there is nothing to record. */
  firstAnswer(instance: LiveInstance, loaded: LoadedImage): Promise<void> | undefined {
    // An eager start has every page present.
    if (loaded.recorded || this.#recording.has(loaded) || instance.start.loader === "eager") return undefined;
    this.#recording.add(loaded);
    return this.#record(instance, loaded).finally(() => this.#recording.delete(loaded));
  }

  async #record(instance: LiveInstance, loaded: LoadedImage): Promise<void> {
    try {
      const { written, read } = await this.scan(instance);
      const faults = minorFaults(instance.hostPid) - instance.husk.faultsBefore;
      if (!loaded.closed) await loaded.record({ written, read, faults: Math.max(0, faults) });
    } catch (error) {
      this.log.warn(
        { err: error, image: loaded.image.id },
        "the working set could not be recorded; starts of this image take more faults until it is",
      );
    }
  }
}
