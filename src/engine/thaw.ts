/**
 * A start from an image. The husk gets its stages as early as can be, and whatever else the server has to do for a new instance is done while the husk works:
 * it is a sixth of what a start takes, because it runs from cold caches each time.
 *
 *   choose a husk ─▶ stages ─────────▶ husk ─────────────────────────▶ resumed ─▶ read(3) ─▶ answer
 *                      └─▶ look at the image's file, limits, instance, who follows it, request ─┘
 */
import { monotonicNs } from "../base/clock.js";
import { faultPoint } from "../base/fault.js";
import type { Fingerprint } from "../linux/fingerprint.js";
import type { Bases } from "./bases.js";
import { type ChosenHusk, chooseHusk } from "./choose-husk.js";
import type { Husk } from "./husk.js";
import type { HuskPool } from "./husk-pool.js";
import type { LoadedImage, Tracking } from "./images.js";
import { type InstanceOwner, LiveInstance } from "./instance.js";
import type { Keeper } from "./keeper.js";
import type { Limits } from "./limits.js";
import type { OpenImages } from "./open-images.js";
import type { Packer } from "./packing.js";
import { isPaged } from "./page-modes.js";
import type { Parking } from "./parking.js";
import { notOpen, Outcome, usBetween } from "./parts.js";
import { phasesOf } from "./phases.js";
import type { Prefetcher } from "./prefetcher.js";
import type { PagedStart, ReapStarts } from "./reap.js";
import type { Recorder } from "./recorder.js";
import { beginStages, type StageStep, type Stamps } from "./stages.js";
import type { Templates } from "./templates.js";
import type { Image, Instance, Loader, StartResult, ThawOptions } from "./types.js";

/** An answer that takes so long may be waiting for the disk. Most of those that do not are there before: who asks the disk takes a processor from them. */
const LATE_MS = 5;

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

/** One start, once its husk is chosen. */
interface Plan {
  readonly loaded: LoadedImage;
  readonly image: Image;
  readonly options: ThawOptions;
  readonly loader: Loader;
  readonly chosen: ChosenHusk;
  readonly recording: Tracking | undefined;
  readonly paged: PagedStart | undefined;
  /** What the husk lacks of the image; nothing where it was resumed ahead. */
  readonly steps: readonly StageStep[];
  /** All that it needs from disk was in the page cache a moment ago. */
  readonly cached: boolean;
  /** For an image that is read whole, where it has to come from disk: how long that took, and how many pages were lacking; undefined where memory had it. */
  readonly whole: { readonly ns: bigint; readonly cold: number | undefined } | undefined;
  /** Without the wait for a husk from a pool. */
  readonly beganNs: bigint;
  /** How long the pages were looked at first; undefined when they were not. */
  readonly verifyUs: number | undefined;
}

/** What was sent, and is on its way. */
interface Sent {
  readonly outcome: Outcome<Stamps[]>;
  /** How many of the pages that were asked for have to come from disk; undefined where the disk was not asked. */
  readonly cold: Promise<number> | undefined;
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
    const plan = await this.#plan(loaded, image, options, asked, lookFirst);
    const { husk } = plan.chosen;
    const sent = husk.resumed ? undefined : this.#send(plan);
    if (!lookFirst && loaded.verify() !== undefined) {
      if (plan.recording !== undefined) loaded.sets.release();
      this.tools.husks.drop(husk);
      return this.start(loaded, image, options, asked, true);
    }
    // In force when the first request is read.
    this.tools.limits.set(husk, image.spec);
    const instance = this.#makeInstance(plan);
    // Timers, which nobody waits for, are made when what the start waits for is on its way: its stages, or the request alone.
    const onItsWay = (): void => {
      this.tools.husks.refillSoon();
      if (husk.resumed && plan.loader === "splice") this.#askLate(loaded, instance, plan.cached);
    };
    const isRequestAll = husk.resumed && options.early === true;
    if (!isRequestAll) onItsWay();
    instance.onRequestSent = () => {
      faultPoint("thaw-request-sent");
      if (isRequestAll) onItsWay();
    };
    if (sent === undefined) return this.#resumed(plan, instance);
    this.#follow(plan, instance, sent.cold);
    this.#startsWith(plan, instance, sent);
    // The caller's request is queued behind the stages; what fails is told there, too.
    if (options.early === true) return instance;
    await new Promise<void>((resolve) => instance.starting.whenOver(resolve));
    const { error } = instance.starting;
    if (error === undefined) return instance;
    await instance.dispose();
    throw instance.failure ?? error;
  }

  async #plan(loaded: LoadedImage, image: Image, options: ThawOptions, asked: bigint, lookFirst: boolean): Promise<Plan> {
    const { templates, husks, images, recorder, reap, prefetcher, fingerprint } = this.tools;
    const loader = loaded.loaderFor(options.loader);
    const verifying = lookFirst ? loaded.verify() : undefined;
    if (verifying !== undefined) await verifying.catch((error: unknown) => this.tools.bases.found(error, loaded.baseId));
    const paged = isPaged(loader) ? await reap.prepare(loaded, loader, recorder.userfaultfd) : undefined;
    const cached = loader === "splice" && prefetcher.foundCached(loaded);
    // A parked husk has the memory behind it.
    const isWhole = loader === "splice" && !cached && options.husk !== "parked" && loaded.readsMost;
    const whole = isWhole ? await this.#readWhole(loaded) : undefined;
    const { id: template } = await templates.get(loaded.image.spec.runtime);
    const chosen = await chooseHusk(husks, loaded, { template, here: fingerprint, loader, options });
    faultPoint("thaw-husk-taken");
    if (images.get(image.dir) !== loaded) {
      // Found unusable by another request while this one waited for its husk.
      husks.drop(chosen.husk);
      throw notOpen(image);
    }
    const recording = recorder.begin(loaded, loader, chosen);
    const beganNs = monotonicNs() - chosen.madeNs - (whole?.ns ?? 0n);
    return {
      loaded,
      image,
      options,
      loader,
      chosen,
      recording,
      paged,
      steps: this.#remainingSteps(loaded, loader, chosen.husk, recording),
      cached,
      whole,
      beganNs,
      verifyUs: verifying === undefined ? undefined : usBetween(asked, beganNs),
    };
  }

  async #readWhole(loaded: LoadedImage): Promise<Plan["whole"]> {
    const from = monotonicNs();
    const cold = await this.tools.prefetcher.startWhole(loaded);
    return { ns: monotonicNs() - from, cold };
  }

  /** What the disk has to bring, and who fills the memory, is told before the stages. */
  #send(plan: Plan): Sent {
    const { loaded, options, chosen, recording, paged, steps } = plan;
    const { keeper, reap, prefetcher } = this.tools;
    if (paged !== undefined) reap.begin(chosen.husk, loaded, paged);
    const asked = plan.whole?.cold;
    const cold = asked !== undefined ? Promise.resolve(asked) : asksAtOnce(plan) ? prefetcher.start(loaded) : undefined;
    const outcome = new Outcome<Stamps[]>();
    const quiet = options.early === true && recording === undefined && paged === undefined;
    beginStages(keeper, chosen.husk, steps, quiet, outcome.tell);
    keeper.flush();
    faultPoint("thaw-stage-sent");
    return { outcome, cold };
  }

  #makeInstance({ loaded, image, loader, chosen, recording, cached }: Plan): LiveInstance {
    const { keeper, owner, adopt } = this.tools;
    const start: StartResult = {
      kind: chosen.parked ? "parked" : "thaw",
      loader,
      generation: image.generation,
      heat: image.heat,
      us: 0,
      phases: [],
      waitUs: chosen.waitUs,
      husk: chosen.from,
      prefetchedPages: 0,
      ...(cached ? { coldPages: 0 } : {}),
      ...(recording === undefined ? {} : { recording: true }),
    };
    const instance = adopt(new LiveInstance(keeper, owner, chosen.husk, image.spec, start));
    instance.origin = image;
    if (loaded.baseId !== undefined) instance.base = loaded.asBase();
    instance.lineagePids = [...loaded.lineagePids, chosen.husk.pid];
    instance.announceThaw(image.generation);
    return instance;
  }

  /** Whoever follows the instance's way from here on. */
  #follow(plan: Plan, instance: LiveInstance, cold: Promise<number> | undefined): void {
    const { loaded, options, loader, chosen, recording, paged, cached } = plan;
    const { parking, recorder, packer, reap, prefetcher } = this.tools;
    if (!chosen.parked && options.husk !== "fresh") parking.started(loaded);
    recorder.follow(instance, loaded, recording);
    packer.began(instance, loaded);
    if (paged !== undefined) reap.follow(instance, loaded, paged);
    // Memory of REAP's virtual machines holds the interpreter, too.
    if (paged?.installs) instance.starting.cold(prefetcher.start(loaded, loaded.prefetchFileRanges()));
    if (asksAtOnce(plan)) this.#asked(loaded, instance, cold);
    else if (loader === "splice" && !chosen.husk.resumed) this.#askLate(loaded, instance, cached);
  }

  /** A process that waits for its request, which is the next thing to be sent. Where processors are few it waits for whatever else the server does now, too. */
  #resumed(plan: Plan, instance: LiveInstance): LiveInstance {
    const { loaded, options, loader, chosen, recording, beganNs } = plan;
    const copied = loaded.copiedPages(loader, chosen.husk, recording);
    const us = usBetween(beganNs, monotonicNs());
    instance.starting.completedBy(() => ({ us, prefetchedPages: copied() }));
    const follow = (): void => this.#follow(plan, instance, undefined);
    if (options.early === true && recording === undefined) instance.starting.followedBy(follow);
    else follow();
    return instance;
  }

  #startsWith(plan: Plan, instance: LiveInstance, { outcome }: Sent): void {
    const { loaded, loader, chosen, recording, paged, steps, beganNs, verifyUs, whole } = plan;
    const copied = loaded.copiedPages(loader, chosen.husk, recording);
    const verified = verifyUs === undefined ? [] : [{ name: "verify", us: verifyUs }];
    const names = steps.map((step) => step.name);
    instance.startsWith((told) =>
      outcome.hear((error, stamps = []) => {
        instance.starting.completedBy(() => {
          const { us, phases } = phasesOf(beganNs, { read: whole?.ns ?? 0n, husk: chosen.madeNs }, names, stamps);
          const own = { us, phases: [...verified, ...phases] };
          // What the pager installs it tells itself.
          return paged === undefined ? { ...own, prefetchedPages: copied() } : own;
        });
        told(error);
      }),
    );
  }

  /** `start` is told how many of the pages that were asked for have to come from disk. */
  #asked(loaded: LoadedImage, instance: LiveInstance, cold: Promise<number> | undefined): void {
    instance.starting.cold(cold);
    void cold?.then((pages) => this.tools.packer.found(loaded, pages));
  }

  #askLate(loaded: LoadedImage, instance: LiveInstance, cached: boolean): void {
    if (cached) this.tools.packer.found(loaded, 0);
    setTimeout(() => {
      if (instance.served === 0 && instance.alive) this.#asked(loaded, instance, this.tools.prefetcher.start(loaded));
    }, LATE_MS);
  }

  #remainingSteps(loaded: LoadedImage, loader: Loader, husk: Husk, recording: Tracking | undefined): StageStep[] {
    if (husk.level === "image" || husk.level === "prefaulted") return husk.resumed ? [] : [loaded.resumeStep()];
    const { fingerprint, recorder } = this.tools;
    const time = loaded.timeStep(fingerprint);
    const thaw = loaded.thawStep(loader, husk.level === "generic", recording, recorder.userfaultfd);
    return time === undefined ? [thaw] : [time, thaw];
  }
}

/**
 * Where all is thought to be in memory, the disk is asked only when the answer is late: asking has the pager look at each page, and where processors are few,
 * the answer itself waits for that. What a process needs that was resumed ahead is mapped.
 */
function asksAtOnce({ loader, cached, chosen }: Plan): boolean {
  return loader === "splice" && !cached && !chosen.husk.resumed;
}
