/**
 * A start from an image. The husk gets its stages as early as can be, and whatever else the server has to do for a new instance is done while the husk works:
 * it is a sixth of what a start takes, because it runs from cold caches each time.
 *
 *   choose a husk ─▶ stages ─────────▶ husk ─────────────────────────▶ resumed ─▶ read(3) ─▶ answer
 *                      └─▶ look at the image's file, limits, instance, who follows it, request ─┘
 */
import { monotonicNs } from "../base/clock.js";
import type { ThawError } from "../base/errors.js";
import { faultPoint } from "../base/fault.js";
import type { Fingerprint } from "../linux/fingerprint.js";
import type { Bases } from "./bases.js";
import { type ChosenHusk, chooseHusk } from "./choose-husk.js";
import type { Husk, HuskPool } from "./husk-pool.js";
import type { LoadedImage, Tracking } from "./images.js";
import { type InstanceOwner, LiveInstance } from "./instance.js";
import type { Keeper } from "./keeper.js";
import type { Limits } from "./limits.js";
import type { OpenImages } from "./open-images.js";
import type { Packer } from "./packing.js";
import type { Parking } from "./parking.js";
import { notOpen, Outcome, usBetween } from "./parts.js";
import { phasesOf } from "./phases.js";
import type { Prefetcher } from "./prefetcher.js";
import { isPaged, type ReapStarts } from "./reap.js";
import type { Recorder } from "./recorder.js";
import { beginStages, type StageStep, type Stamps } from "./stages.js";
import type { Templates } from "./templates.js";
import type { Image, Instance, Loader, StartResult, ThawOptions } from "./types.js";

/** An answer that takes so long may be waiting for the disk. */
const LATE_MS = 2;

/** What thawing needs of the engine. */
export interface ThawTools {
  readonly keeper: Keeper;
  readonly husks: HuskPool;
  readonly images: OpenImages;
  readonly templates: Templates;
  readonly bases: Bases;
  readonly parking: Parking;
  readonly limits: Limits;
  readonly recorder: Recorder;
  readonly reap: ReapStarts;
  readonly prefetcher: Prefetcher;
  readonly packer: Packer;
  readonly fingerprint: Fingerprint;
  readonly owner: InstanceOwner;
  readonly adopt: (instance: LiveInstance) => LiveInstance;
}

interface How {
  readonly loader: Loader;
  readonly recording: Tracking | undefined;
  /** All that it needs was in the page cache a moment ago. */
  readonly cached: boolean;
}

/** See above. */
export class Thaws {
  constructor(private readonly tools: ThawTools) {}

  /**
   * @param asked when the start began
   * @param lookFirst nothing is mapped before the pages are known to be those that were written. Else that is looked at while the husk works: one whose
   *   image was changed gets no request, and the start begins anew. Not where a thread or a timer of the function would run by itself meanwhile, nor
   *   with parked husks: they are too few for that, and most have no stage left to send
   */
  async start(
    loaded: LoadedImage,
    image: Image,
    options: ThawOptions,
    asked: bigint,
    lookFirst = !loaded.foundWhole || !loaded.waits || options.husk === "parked",
  ): Promise<Instance> {
    const { keeper, husks, recorder, reap, limits, packer, parking, prefetcher } = this.tools;
    const loader = loaded.loaderFor(options.loader);
    const verifying = lookFirst ? loaded.verify() : undefined;
    if (verifying !== undefined) await verifying.catch((error: unknown) => this.tools.bases.found(error, loaded.baseId));
    const paged = isPaged(loader) ? await reap.prepare(loaded, loader, recorder.device) : undefined;
    const chosen = await this.#choose(loaded, loader, options);
    faultPoint("thaw-husk-taken");
    const { husk, madeNs } = chosen;
    if (this.tools.images.get(image.dir) !== loaded) {
      // Found unusable by another request while this one waited for its husk.
      husks.drop(husk);
      throw notOpen(image);
    }
    const recording = recorder.begin(loaded, loader, chosen);
    const began = monotonicNs() - madeNs;
    const steps = this.#remainingSteps(loaded, loader, husk, recording);
    if (paged !== undefined) reap.begin(husk, loaded, paged);
    // Where all is thought to be in memory, the disk is asked only when the answer is late: asking has the pager look at each page, and where processors
    // are few, the answer itself waits for that. What a process needs that was resumed ahead is mapped.
    const cached = loader === "splice" && prefetcher.foundCached(loaded);
    const asking = loader === "splice" && !cached && !husk.resumed;
    const cold = asking ? prefetcher.start(loaded) : undefined;
    const outcome = new Outcome<Stamps[]>();
    const quiet = options.early === true && recording === undefined && paged === undefined;
    beginStages(keeper, husk, steps, quiet, outcome.tell);
    keeper.flush();
    faultPoint("thaw-stage-sent");

    if (!lookFirst && loaded.verify() !== undefined) {
      if (recording !== undefined) loaded.sets.release();
      husks.drop(husk);
      return this.start(loaded, image, options, asked, true);
    }
    // In force when the first request is read.
    limits.set(husk, image.spec);
    const instance = this.#makeInstance(loaded, image, chosen, { loader, recording, cached });
    const copied = loaded.copiedPages(loader, husk, recording);
    if (cached) packer.found(loaded, 0);
    if (loader === "splice" && !asking) this.#askLate(instance, loaded);
    const follow = (): void => {
      if (!chosen.parked && options.husk !== "fresh") parking.started(loaded);
      recorder.follow(instance, loaded, recording);
      packer.began(instance, loaded);
      if (paged !== undefined) reap.follow(instance, loaded, paged);
      if (asking) this.#asked(instance, loaded, cold);
      // Memory of REAP's virtual machines holds the interpreter, too.
      if (paged?.installs) instance.starting.cold(prefetcher.start(loaded, loaded.prefetchFileRanges()));
    };
    if (steps.length === 0) {
      // Resumed when it was parked: its request is all that it waits for.
      const us = usBetween(began, monotonicNs());
      instance.starting.completedBy(() => ({ us, prefetchedPages: copied() }));
      instance.afterSending(() => faultPoint("thaw-request-sent"));
      // Where processors are few, whatever the server does now its process waits for.
      if (options.early === true && recording === undefined) instance.starting.followedBy(follow);
      else follow();
      return instance;
    }
    follow();
    instance.afterSending(() => faultPoint("thaw-request-sent"));
    const names = steps.map((step) => step.name);
    let failed: ThawError | undefined;
    // The caller's request is queued behind the stages; what fails is told there, too.
    instance.startsWith((told) =>
      outcome.hear((error, stamps = []) => {
        instance.starting.completedBy(() => {
          const { us, phases } = phasesOf(began, madeNs, names, stamps);
          const verified = verifying === undefined ? [] : [{ name: "verify", us: usBetween(asked, began) }];
          const own = { us, phases: [...verified, ...phases] };
          // What the pager installs it tells itself.
          return paged === undefined ? { ...own, prefetchedPages: copied() } : own;
        });
        failed = error;
        told(error);
      }),
    );
    if (options.early === true) return instance;
    await new Promise<void>((resolve) => instance.starting.whenOver(resolve));
    if (failed === undefined) return instance;
    await instance.dispose();
    throw instance.failure ?? failed;
  }

  #makeInstance(loaded: LoadedImage, image: Image, { husk, parked, waitUs, from }: ChosenHusk, how: How): LiveInstance {
    const start: StartResult = {
      kind: parked ? "parked" : "thaw",
      loader: how.loader,
      generation: image.generation,
      heat: image.heat,
      us: 0,
      phases: [],
      waitUs,
      husk: from,
      prefetchedPages: 0,
      ...(how.cached ? { coldPages: 0 } : {}),
      ...(how.recording === undefined ? {} : { recording: true }),
    };
    const instance = this.tools.adopt(new LiveInstance(this.tools.keeper, this.tools.owner, husk, image.spec, start));
    instance.origin = image;
    if (loaded.baseId !== undefined) instance.base = loaded.asBase();
    instance.lineagePids = [...loaded.lineagePids, husk.pid];
    instance.announceThaw(image.generation);
    return instance;
  }

  async #choose(loaded: LoadedImage, loader: Loader, options: ThawOptions): Promise<ChosenHusk> {
    const { templates, husks, fingerprint } = this.tools;
    const { id } = await templates.get(loaded.image.spec.runtime);
    return chooseHusk(husks, loaded, { template: id, here: fingerprint, loader, options });
  }

  /** `start` is told how many of the pages that were asked for have to come from disk. */
  #asked(instance: LiveInstance, loaded: LoadedImage, cold: Promise<number> | undefined): void {
    instance.starting.cold(cold);
    void cold?.then((pages) => this.tools.packer.found(loaded, pages));
  }

  #askLate(instance: LiveInstance, loaded: LoadedImage): void {
    setTimeout(() => {
      if (instance.served === 0 && instance.alive) this.#asked(instance, loaded, this.tools.prefetcher.start(loaded));
    }, LATE_MS);
  }

  /** What a husk lacks of that image. */
  #remainingSteps(loaded: LoadedImage, loader: Loader, husk: Husk, recording: Tracking | undefined): StageStep[] {
    if (husk.level === "image" || husk.level === "prefaulted") return husk.resumed ? [] : [loaded.resumeStep()];
    const { fingerprint, recorder } = this.tools;
    const time = loaded.timeStep(fingerprint);
    const thaw = loaded.thawStep(loader, husk.level === "generic", recording, recorder.device);
    return time === undefined ? [thaw] : [time, thaw];
  }
}
