/**
 * Policies of heat, replayed on recorded latencies: the same functions, the same noise, as many seeds as one likes, in seconds.
 *
 *     recorded once, by running the function              replayed, for each policy, seed and kind of traffic
 *     ┌──────────────────────────────────┐    choose   ┌───────────────────────────────────────────────────┐
 *     │ heat   0: start 1: 4.1 1.9 1.8 … │ ◀────────── │ decider (src/platform/heat-policy.ts)             │
 *     │           start 2: 4.4 2.0 1.7 … │ ──────────▶ │ one start of that heat, drawn at random; as many  │
 *     │ heat   1: …                      │  answered   │ of its requests as the instance lives             │
 *     │ heat 100: …                      │ ◀────────── │ freezeAt reached: an image more, and it is counted │
 *     └──────────────────────────────────┘   freezeAt  └───────────────────────────────────────────────────┘
 *
 * An image of a heat that was not recorded behaves as the nearest colder one that was: never hotter than it was measured. What is promised is
 * measured against *the best fixed point*: one image for every start, the best of all recorded, which nobody knows beforehand.
 *
 * The policy sees single recorded latencies, hiccups and all. It is judged by typical ones: each request counts with the median, over all recorded
 * starts, of what it is (the second request to an instance of heat 10, say). So a bad choice costs its full price however rare it is, and
 * a hiccup of the machine that happened to be recorded with one image and not with another costs nothing.
 */
import type { HeatDecider, HeatPolicy, ImagePoint } from "../platform/heat-policy.js";
import { median, quantile, seededRandom } from "./statistics.js";

/** The latencies of one function. The first point is that of heat 0. */
export interface RecordedLatencies {
  readonly function: string;
  /** By rising heat. */
  readonly points: readonly RecordedPoint[];
  /** Handler milliseconds of request n + 1 of one instance that is never thawed: what a warm-up sees. Default: put together from the points. */
  readonly curve?: readonly number[];
}

/** Thaws of one image. */
export interface RecordedPoint {
  readonly heat: number;
  /** `starts[i][j]`: handler milliseconds of request j + 1 after thaw i. At least one of each. */
  readonly starts: readonly (readonly number[])[];
}

/** How many requests an instance answers before it ends; at least 1. */
export interface Lifetimes {
  readonly name: string;
  draw(random: () => number): number;
}

/** Geometric: after each request the instance ends with the same probability. */
export function geometricLifetimes(mean: number): Lifetimes {
  const goOn = Math.log(1 - 1 / mean);
  return {
    name: mean === 1 ? "1 request" : `geometric, mean ${mean}`,
    draw: (random) => (mean === 1 ? 1 : 1 + Math.floor(Math.log(1 - random()) / goOn)),
  };
}

/** As in Pronghorn's evaluation (EuroSys'24): instances that are evicted after one, four or twenty requests; on average, here. */
export const LIFETIMES: readonly Lifetimes[] = [1, 4, 20].map(geometricLifetimes);

/** How often and how long policies are replayed. */
export interface ReplayOptions {
  /** How many times each replay is repeated, with seeds 1, 2, … */
  readonly seeds: number;
  /** Length of each. */
  readonly requests: number;
  /** Requests that the policy may spend on learning. Default 300. */
  readonly settled?: number;
  /** Default: all of {@link LIFETIMES}. */
  readonly lifetimes?: readonly Lifetimes[];
  /**
   * Where hotter images come from. `warm-up` (default): a private instance beside the traffic, ten of its requests for each real one.
   * `traffic`: instances that live long enough.
   */
  readonly images?: ImageSource;
}

export type ImageSource = "warm-up" | "traffic";

/** One policy on one function under one kind of traffic, all seeds together. */
export interface ReplayResult {
  readonly function: string;
  readonly policy: string;
  readonly images: ImageSource;
  readonly lifetimes: string;
  readonly seeds: number;
  readonly freezes: { readonly mean: number; readonly max: number };
  /** Typical latency of the requests after `settled`, always thawing the image of that heat. */
  readonly fixed: readonly FixedPoint[];
  /** The lowest of these. */
  readonly best: FixedPoint;
  /** The policy's typical latency after `settled`, divided by that of `best`: over the seeds. */
  readonly ratio: Spread;
  /** Share of the starts after `settled`, by heat of the image. */
  readonly starts: readonly { readonly heat: number; readonly share: number }[];
}

/** One image for every start; the mean of typical latencies, milliseconds. */
export interface FixedPoint {
  readonly heat: number;
  readonly typicalMs: number;
}

/** Over the seeds. */
export interface Spread {
  readonly median: number;
  readonly p95: number;
  readonly max: number;
}

const SETTLED = 300;
/** One image alone needs fewer repetitions: nothing is decided, so its mean is certain within a few thousandths. */
const BASELINE_SEEDS_MAX = 25;
/** Requests of the private instance for each real one: what is ten times as fast as requests come. */
const WARM_UP_PACE = 10;
/** As `thaw deploy` replays at most, by default. */
const WARM_UP_REQUESTS_MAX = 1_000;

/** Replays every policy on every function, under every kind of traffic. Throws on a recording that cannot be replayed. */
export function replayPolicies(
  recordings: readonly RecordedLatencies[],
  policies: readonly HeatPolicy[],
  options: ReplayOptions,
): ReplayResult[] {
  const { lifetimes = LIFETIMES } = options;
  for (const recording of recordings) checkRecording(recording);
  return recordings.map(toTable).flatMap((recording) =>
    lifetimes.flatMap((traffic) => {
      const fixed = recording.points.map(({ heat }) => fixedPoint(recording, heat, traffic, options));
      return policies.map((policy) => replayOne(recording, policy, traffic, fixed, options));
    }),
  );
}

/** A request of a replay. */
interface Answer {
  readonly typicalMs: number;
  readonly heat: number;
  readonly first: boolean;
}

function replayOne(
  recording: LatencyTable,
  policy: HeatPolicy,
  traffic: Lifetimes,
  fixed: ReplayResult["fixed"],
  options: ReplayOptions,
): ReplayResult {
  const { seeds, requests, settled = SETTLED, images = "warm-up" } = options;
  const runs = Array.from({ length: seeds }, (_, index) =>
    new Replay(recording, policy, images, traffic, index + 1).run(requests),
  );
  const best = fixed.reduce((low, point) => (point.typicalMs < low.typicalMs ? point : low));
  const after = runs.map(({ answers }) => answers.slice(settled));
  const freezes = runs.map((run) => run.freezes);
  return {
    function: recording.function,
    policy: policy.name,
    images,
    lifetimes: traffic.name,
    seeds,
    freezes: { mean: mean(freezes), max: Math.max(...freezes) },
    fixed,
    best,
    ratio: spreadOf(after.map((answers) => mean(answers.map(({ typicalMs }) => typicalMs)) / best.typicalMs)),
    starts: startsByHeat(after.flat()),
  };
}

function spreadOf(ratios: readonly number[]): Spread {
  return { median: quantile(ratios, 0.5), p95: quantile(ratios, 0.95), max: Math.max(...ratios) };
}

function startsByHeat(answers: readonly Answer[]): ReplayResult["starts"] {
  const counts = new Map<number, number>();
  let starts = 0;
  for (const { heat, first } of answers) {
    if (!first) continue;
    starts++;
    counts.set(heat, (counts.get(heat) ?? 0) + 1);
  }
  return [...counts].sort(([a], [b]) => a - b).map(([heat, count]) => ({ heat, share: count / starts }));
}

/** One image for every start: the same replay, by a decider that never chooses anything else and never freezes. */
function fixedPoint(recording: LatencyTable, heat: number, traffic: Lifetimes, options: ReplayOptions): FixedPoint {
  const { seeds, requests, settled = SETTLED } = options;
  const only: ImagePoint = { generation: 0, heat };
  const always: HeatDecider = { choose: () => only, freezeAt: () => undefined, answered: () => {}, surplus: () => [] };
  const policy: HeatPolicy = { name: `always ${heat}`, begin: () => always };
  const answers = Array.from({ length: Math.min(seeds, BASELINE_SEEDS_MAX) }, (_, index) =>
    new Replay(recording, policy, "traffic", traffic, index + 1, only).run(requests).answers.slice(settled),
  ).flat();
  return { heat, typicalMs: mean(answers.map(({ typicalMs }) => typicalMs)) };
}

/** One run over one seed. Traffic, latencies and policy draw from sequences of their own: another policy meets the same instances. */
class Replay {
  private readonly images: ImagePoint[];
  private readonly answers: Answer[] = [];
  private freezes = 0;
  private readonly decider: HeatDecider;
  private readonly lives: () => number;
  private readonly draws: () => number;
  private readonly warmUp: PrivateInstance | undefined;

  constructor(
    private readonly recording: LatencyTable,
    policy: HeatPolicy,
    private readonly source: ImageSource,
    private readonly traffic: Lifetimes,
    seed: number,
    first: ImagePoint = { generation: 0, heat: 0 },
  ) {
    this.images = [first];
    this.lives = seededRandom(seed);
    this.draws = seededRandom(seed + 1_000_003);
    this.decider = policy.begin(seededRandom(seed + 2_000_003));
    if (source === "warm-up") this.warmUp = new PrivateInstance(recording, seededRandom(seed + 3_000_017), first);
  }

  run(requests: number): { readonly answers: readonly Answer[]; readonly freezes: number } {
    while (this.answers.length < requests) this.instance(requests);
    return { answers: this.answers, freezes: this.freezes };
  }

  private instance(requests: number): void {
    const from = this.decider.choose(this.images);
    if (!this.images.includes(from)) throw new Error(`The policy chose an image that does not exist: heat ${from.heat}`);
    const latencies = new Lineage(this.recording, from.heat, this.draws);
    const life = this.traffic.draw(this.lives);
    let next = this.source === "traffic" ? this.decider.freezeAt(this.images, from) : undefined;
    for (let served = 1; served <= life && this.answers.length < requests; served++) {
      const request = from.heat + served;
      const { ms, typicalMs } = latencies.answer(request);
      this.answers.push({ typicalMs, heat: from.heat, first: served === 1 });
      this.decider.answered(from, request, ms);
      if (request === next) {
        this.freeze(request);
        next = this.decider.freezeAt(this.images, from);
      }
      this.warmUp?.advance(this.decider, this.images, (heat) => this.freeze(heat));
    }
    this.giveUp();
  }

  private freeze(heat: number): void {
    this.freezes++;
    this.images.push({ generation: this.freezes, heat });
    this.giveUp();
  }

  private giveUp(): void {
    for (const image of this.decider.surplus(this.images)) {
      const index = this.images.indexOf(image);
      if (index >= 0) this.images.splice(index, 1);
    }
    if (this.images.length === 0) throw new Error("The policy gave up every image");
  }
}

/** The instance of a warm-up: thawed from generation 0, asked nothing but declared events. */
class PrivateInstance {
  private served = 0;
  private next: number | undefined;
  private readonly latencies: Lineage;

  constructor(
    private readonly recording: LatencyTable,
    draws: () => number,
    private readonly from: ImagePoint,
  ) {
    this.latencies = new Lineage(recording, from.heat, draws);
  }

  advance(decider: HeatDecider, images: readonly ImagePoint[], freeze: (heat: number) => void): void {
    if (this.served === 0) this.next = decider.freezeAt(images, this.from);
    for (let step = 0; step < WARM_UP_PACE; step++) {
      if (this.next === undefined || this.next > WARM_UP_REQUESTS_MAX) return;
      this.served++;
      const request = this.from.heat + this.served;
      decider.answered(this.from, request, this.recording.curve?.[request - 1] ?? this.latencies.answer(request).ms);
      if (request < this.next) continue;
      freeze(request);
      this.next = decider.freezeAt(images, this.from);
    }
  }
}

/**
 * What an instance answers with that was thawed at `heat`: one recorded start as far as it goes, then its last quarter over and over, until
 * there are recordings of a hotter image than that of what the instance has become. The first request after a thaw pays for page faults, so it stands for itself alone.
 */
class Lineage {
  private point: TablePoint;
  private start: readonly number[];

  constructor(
    private readonly recording: LatencyTable,
    private readonly heat: number,
    private readonly random: () => number,
  ) {
    this.point = colderOf(recording.points, heat);
    this.start = this.drawStart();
  }

  /** Requests are asked for in order. */
  answer(request: number): { readonly ms: number; readonly typicalMs: number } {
    const served = request - this.heat;
    if (served <= 1) return this.at(0);
    const point = colderOf(this.recording.points, request - 2);
    if (point.heat > this.point.heat) {
      this.point = point;
      this.start = this.drawStart();
    }
    // An image between two recorded heats is as cold as the lower one, so its requests are counted from that.
    const from = this.point.heat < this.heat ? this.heat : this.point.heat;
    return this.at(request - from - 1);
  }

  private at(index: number): { readonly ms: number; readonly typicalMs: number } {
    const { length } = this.start;
    const tail = Math.ceil(length / 4);
    const at = index < length ? index : length - tail + ((index - length) % tail);
    return { ms: this.start[at] ?? Number.NaN, typicalMs: this.point.typical[at] ?? Number.NaN };
  }

  private drawStart(): readonly number[] {
    const { starts } = this.point;
    return starts[Math.floor(this.random() * starts.length)] ?? [];
  }
}

function colderOf(points: readonly TablePoint[], heat: number): TablePoint {
  const colder = points.findLast((point) => point.heat <= heat) ?? points[0];
  if (colder === undefined) throw new Error("A recording has no points");
  return colder;
}

/** A recording, and what is typical of it. */
interface LatencyTable extends RecordedLatencies {
  readonly points: readonly TablePoint[];
}

interface TablePoint extends RecordedPoint {
  /** Median over the starts of each request, as far as any of them goes. */
  readonly typical: readonly number[];
}

function toTable(recording: RecordedLatencies): LatencyTable {
  return { ...recording, points: recording.points.map((point) => ({ ...point, typical: typicalOf(point.starts) })) };
}

function typicalOf(starts: RecordedPoint["starts"]): number[] {
  const length = Math.max(...starts.map((start) => start.length));
  return Array.from({ length }, (_, index) => median(starts.flatMap((start) => start.slice(index, index + 1))));
}

function checkRecording({ function: name, points }: RecordedLatencies): void {
  if (points[0]?.heat !== 0) throw new Error(`The recording of ${name} does not begin at heat 0`);
  let last = -1;
  for (const { heat, starts } of points) {
    if (heat <= last) throw new Error(`The recording of ${name} is not in order of heat`);
    last = heat;
    const usable = starts.length > 0 && starts.every((start) => start.length > 0 && start.every((ms) => ms >= 0));
    if (!usable) throw new Error(`The recording of ${name} at heat ${heat} lacks latencies`);
  }
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
