/**
 * Images at a few fixed heats, and the best of them for nearly every start (docs/design/heat.md).
 *
 * What is minimised is what the users of instances feel: the mean over the requests that an instance answers here, forty of them at most. Where
 * each answers once it is the first request alone; where they live longer, the next ones weigh as much as there are of them.
 *
 *     worth of an image   each request counts with what is typical of it, as often as instances live to answer it
 *     which image?        the one that may be the best: the fewer starts are known of it, the more the doubt speaks for it
 *     looking again       one start in twenty at most, and so rarely that it costs a third of a percent
 *
 * The next image is taken at the next point as long as the last step paid. A step is judged by starts from both its images; while these are too few, and
 * beyond the hottest image, by the requests that live instances answer: code that is compiled late shows there before any image has it.
 */
import { ThawError } from "../base/errors.js";
import { whole, z } from "../base/schema.js";
import type { HeatDecider, HeatPolicy, ImagePoint } from "./heat-policy.js";
import { LatencyEstimate } from "./latency-estimate.js";
import { TypicalLatency } from "./typical-latency.js";

const HEAT_POINTS: readonly number[] = [0, 1, 10, 100, 1000];

/** See above. INVALID_ARGUMENT unless `points` are whole, not negative and rising. */
export function fixedPoints(points = HEAT_POINTS): HeatPolicy {
  checkPoints(points);
  return { name: "fixed", begin: (random = Math.random, saved) => new FixedPoints(points, random, saved) };
}

/** Starts from an image before it is judged: a single one may meet a hiccup that leaves nothing to compare. */
const TRIES = 2;
/** A step to a hotter image has paid when it made starts faster by this part. */
const PAYS = 0.05;
/** Part of the handler time that looking again at images that are not the best may cost. */
const CURIOSITY = 0.003;
/** Images kept at most, those made by hand included. */
const IMAGES_MAX = 8;
/** Of an instance, the requests that count. */
const REQUESTS = 40;
/** Requests that hardly any instance lives to answer do not: they would cost arithmetic at every start. */
const SELDOM = 0.01;
/** How fast it is learned how long instances live: part of what is known that a start takes away. */
const LIFE_GAIN = 0.05;
/** An image of which `n` starts are known may be better than it looks by this part of itself, divided by n^1.5; never by more than the other. */
const DOUBT = 0.4;
const DOUBT_MAX = 0.6;
/** Requests from this one on, counted from the thaw, are without its page faults: they show what the code itself costs. */
const SETTLED_REQUEST = 4;
/** Samples of either side before live instances are believed. */
const CURVE_MIN = 4;
/** An image is given up when it is slower than the best by this part, and by as much as may be doubted of either. Less than that may be bad luck. */
const LOST = 0.5;
/** Starts of both before anything is given up for being slow: it does not come back. */
const LOST_MIN = 8;
const LOOK_AGAIN_MAX = 1 / 20;
/** Of each request and each stretch of the curve, the samples that are saved: enough to tell what is typical. */
const SAVED_SAMPLES = 12;
/** An image that was chosen this often and never answered will not. */
const SILENT = 15;
/** A new image that was chosen so often for each start it should answer is not waited for any longer. */
const WAIT = 3;

/** What is known of one image. */
interface Known {
  readonly heat: number;
  chosen: number;
  /** By request of an instance, as far as any of this image's got. */
  readonly requests: TypicalLatency[];
}

interface Compared {
  /** Lower is better; infinite while nothing is known. */
  readonly ms: number;
  readonly error: number;
}

/** An image among those to choose from. */
interface Candidate extends Compared {
  readonly image: ImagePoint;
  readonly known: Known;
  /** How many starts are known, each by the part of its requests that was answered. */
  readonly starts: number;
}

const samples = z.array(z.number().nonnegative());
/** What {@link FixedPoints.save} gives. */
const SAVED = z.object({
  points: z.array(whole),
  images: z.array(
    z.object({
      generation: whole,
      heat: whole,
      chosen: whole,
      requests: z.array(samples).max(REQUESTS),
      hottest: z.literal(true).exactOptional(),
    }),
  ),
  hottestHeat: whole.exactOptional(),
  steps: whole,
  lived: z.array(z.number().nonnegative()).length(REQUESTS),
  curve: z.array(samples),
});

class FixedPoints implements HeatDecider {
  private readonly known = new Map<number, Known>();
  /** The hottest image there ever was, and how many it had to beat: they outlive their images, so that no point is taken twice. */
  private hottest: Known | undefined;
  private steps = 0;
  /** How many of the last starts, about twenty, lived to answer each request. */
  private readonly lived = new Float64Array(REQUESTS);
  /** Of live instances, by the first point that is not below the request. */
  private readonly curve: readonly LatencyEstimate[];

  constructor(
    private readonly points: readonly number[],
    private readonly random: () => number,
    saved?: unknown,
  ) {
    this.curve = points.map(() => new LatencyEstimate());
    if (saved !== undefined) this.restore(SAVED.parse(saved));
  }

  choose(images: readonly ImagePoint[]): ImagePoint {
    this.meet(images);
    const field = this.field(images);
    const { image, known } = this.lookAgain(field) ?? mayBeBest(field, TRIES);
    known.chosen++;
    return image;
  }

  freezeAt(images: readonly ImagePoint[], from: ImagePoint): number | undefined {
    this.meet(images);
    const heat = Math.max(from.heat, this.hottest?.heat ?? 0);
    const next = this.points.find((point) => point > heat);
    return next !== undefined && this.pays(next, images) ? next : undefined;
  }

  answered(from: ImagePoint, request: number, ms: number): void {
    if (!(ms >= 0)) return;
    const served = request - from.heat;
    if (served < 1) return;
    if (served <= REQUESTS) {
      const { requests } = this.of(from);
      while (requests.length < served) requests.push(new TypicalLatency());
      requests[served - 1]?.add(ms);
      // Each start takes a part of all away, each answer gives one back.
      if (served === 1)
        for (let index = 0; index < REQUESTS; index++) this.lived[index] = (this.lived[index] ?? 0) * (1 - LIFE_GAIN);
      this.lived[served - 1] = (this.lived[served - 1] ?? 0) + 1;
    }
    if (served >= SETTLED_REQUEST) this.curve[this.points.findIndex((point) => point >= request)]?.add(ms);
  }

  surplus(images: readonly ImagePoint[]): readonly ImagePoint[] {
    this.meet(images);
    const field = this.field(images);
    const best = bestOf(field);
    // The coldest one stays: nobody's requests are in it, it thaws when another does not, and what comes next is made from it.
    const others = field.filter((candidate) => candidate !== best && candidate !== field.at(-1));
    const slow = others.filter((candidate) => lost(candidate, best));
    const rest = others.filter((candidate) => !slow.includes(candidate)).sort((a, b) => b.ms - a.ms);
    const tooMany = field.length - slow.length - IMAGES_MAX;
    return [...slow, ...rest.slice(0, Math.max(0, tooMany))].map(({ image }) => image);
  }

  save(): z.input<typeof SAVED> {
    const samples = (of: readonly (TypicalLatency | LatencyEstimate)[]) => of.map((one) => one.recent(SAVED_SAMPLES));
    const { hottest } = this;
    return {
      points: [...this.points],
      images: [...this.known].map(([generation, known]) => ({
        generation,
        heat: known.heat,
        chosen: known.chosen,
        requests: samples(known.requests),
        ...(known === hottest ? { hottest: true as const } : {}),
      })),
      ...(hottest === undefined ? {} : { hottestHeat: hottest.heat }),
      steps: this.steps,
      lived: [...this.lived].map((starts) => Number(starts.toPrecision(4))),
      curve: samples(this.curve),
    };
  }

  /** What other points taught says nothing about these. */
  private restore({ points, images, hottestHeat, steps, lived, curve }: z.output<typeof SAVED>): void {
    if (points.join() !== this.points.join()) throw new Error(`it was learned with the points ${points.join(", ")}`);
    for (const { generation, heat, chosen, requests, hottest } of images) {
      const known: Known = { heat, chosen, requests: requests.map(() => new TypicalLatency()) };
      for (const [index, samples] of requests.entries()) for (const ms of samples) known.requests[index]?.add(ms);
      this.known.set(generation, known);
      if (hottest === true) this.hottest = known;
    }
    if (hottestHeat !== undefined) this.hottest ??= { heat: hottestHeat, chosen: 0, requests: [] };
    this.steps = steps;
    this.lived.set(lived);
    for (const [index, samples] of curve.entries()) for (const ms of samples) this.curve[index]?.add(ms);
  }

  /** Images that came are remembered, those that went are forgotten. */
  private meet(images: readonly ImagePoint[]): void {
    for (const image of images) this.of(image);
    if (this.known.size === images.length) return;
    const generations = new Set(images.map(({ generation }) => generation));
    for (const generation of this.known.keys()) if (!generations.has(generation)) this.known.delete(generation);
  }

  private of({ generation, heat }: ImagePoint): Known {
    const found = this.known.get(generation);
    if (found?.heat === heat) return found;
    const made: Known = { heat, chosen: 0, requests: [] };
    this.known.set(generation, made);
    if (this.hottest === undefined || heat > this.hottest.heat) {
      if (this.hottest !== undefined) this.steps++;
      this.hottest = made;
    }
    return made;
  }

  /** Hottest first, each with its worth: the mean over an instance's requests. What is not known of a request is as with the next image in heat. */
  private field(images: readonly ImagePoint[]): Candidate[] {
    const field = images
      .map((image) => ({ image, known: this.of(image), total: 0, starts: 0 }))
      .sort((a, b) => b.image.heat - a.image.heat || b.image.generation - a.image.generation);
    const first = this.lived[0] ?? 0;
    let weights = 0;
    for (let request = 0; request < REQUESTS; request++) {
      const weight = first > 0 ? (this.lived[request] ?? 0) / first : 0;
      if (weight < SELDOM) continue;
      // In the order of heat, so that a gap takes over what the hotter one has; the hottest ones take what the first after them has.
      let ms = field.find(({ known }) => known.requests[request] !== undefined)?.known.requests[request]?.ms;
      if (ms === undefined) continue;
      weights += weight;
      for (const candidate of field) {
        const own = candidate.known.requests[request];
        if (own !== undefined) ms = own.count > 1 ? own.ms : single(own, field, request);
        candidate.total += weight * ms;
        candidate.starts += weight * (own?.count ?? 0);
      }
    }
    return field.map(({ image, known, total, starts }) => {
      const ms = weights > 0 ? total / weights : Number.POSITIVE_INFINITY;
      const seen = weights > 0 ? starts / weights : 0;
      return { image, known, starts: seen, ms, error: weights > 0 ? ms * Math.min(DOUBT_MAX, DOUBT / seen ** 1.5) : 0 };
    });
  }

  private lookAgain(field: readonly Candidate[]): Candidate | undefined {
    const best = bestOf(field);
    let dice = this.random();
    for (const candidate of field) {
      if (candidate === best) continue;
      const extra = candidate.ms - best.ms;
      const affordable = extra > 0 ? (CURIOSITY * best.ms) / (extra * (field.length - 1)) : LOOK_AGAIN_MAX;
      // NaN where neither has answered: then there is nothing to compare with.
      const chance = Math.min(LOOK_AGAIN_MAX, affordable) || 0;
      if (dice < chance) return candidate;
      dice -= chance;
    }
    return undefined;
  }

  private pays(next: number, images: readonly ImagePoint[]): boolean {
    const { hottest, steps } = this;
    const at = this.points.indexOf(next);
    if (hottest === undefined || steps === 0 || this.curveFell(at)) return true;
    const tried = this.field(images).filter(({ starts }) => starts >= TRIES);
    const hot = tried.find(({ known }) => known === hottest);
    const colder = tried.filter(({ known }) => known !== hottest);
    if (hot === undefined || colder.length === 0) return !this.curveIsFlat(at - 1);
    return this.faster(hot, bestOf(colder));
  }

  /** Whether requests between the points `at - 1` and `at` are answered faster, for sure, than those before. */
  private curveFell(at: number): boolean {
    const [before, after] = this.curveAround(at);
    return before !== undefined && after !== undefined && this.faster(after, before);
  }

  /** Whether they are not, for sure. */
  private curveIsFlat(at: number): boolean {
    const [before, after] = this.curveAround(at);
    if (before === undefined || after === undefined) return false;
    return before.ms - after.ms + Math.hypot(before.error, after.error) < PAYS * before.ms;
  }

  private curveAround(at: number): [Compared | undefined, Compared | undefined] {
    const [before, after] = [this.curve[at - 1], this.curve[at]].map((estimate) =>
      estimate === undefined || estimate.count < CURVE_MIN ? undefined : { ms: estimate.mean, error: estimate.error },
    );
    return [before, after];
  }

  private faster(now: Compared, before: Compared): boolean {
    return before.ms - now.ms > Math.max(PAYS * before.ms, Math.hypot(now.error, before.error));
  }
}

/**
 * What to believe of the only sample of a request. It may be a hiccup of fifty times what is typical, which would outweigh all other requests; so where
 * it is slower than with the two images that are nearest in heat, it counts as with the slower of them.
 */
function single(own: TypicalLatency, field: readonly { readonly known: Known }[], request: number): number {
  let [hotter, hotterYet, colder, colderYet]: (number | undefined)[] = [];
  let passed = false;
  for (const { known } of field) {
    const other = known.requests[request];
    if (other === own) passed = true;
    else if (other === undefined) continue;
    else if (!passed) [hotterYet, hotter] = [hotter, other.ms];
    else if (colder === undefined) colder = other.ms;
    else colderYet ??= other.ms;
  }
  // The hottest and the coldest have both on one side.
  const slower = Math.max(hotter ?? colderYet ?? 0, colder ?? hotterYet ?? 0);
  return slower > 0 ? Math.min(own.ms, slower) : own.ms;
}

/** The one that would be the best if all doubts were in its favour; before that, from the hottest downwards, each that was hardly tried. */
function mayBeBest(field: readonly Candidate[], tries: number): Candidate {
  const untried = field.find(({ known }) => (known.requests[0]?.count ?? 0) < tries && known.chosen < tries * WAIT);
  if (untried !== undefined) return untried;
  const hope = ({ ms, error, known, starts }: Candidate) =>
    starts === 0 && known.chosen >= SILENT ? Number.POSITIVE_INFINITY : ms - error;
  return lowest(field, hope);
}

function bestOf(field: readonly Candidate[]): Candidate {
  return lowest(field, ({ ms, starts }) => (starts === 0 ? Number.POSITIVE_INFINITY : ms));
}

/** The hotter one in doubt. */
function lowest(field: readonly Candidate[], value: (candidate: Candidate) => number): Candidate {
  const [hottest, ...others] = field;
  if (hottest === undefined) throw new Error("A policy is asked to choose between no images");
  return others.reduce((low, candidate) => (value(candidate) < value(low) ? candidate : low), hottest);
}

function lost(candidate: Candidate, best: Candidate): boolean {
  if (best.starts < LOST_MIN) return false;
  if (candidate.starts === 0) return candidate.known.chosen >= SILENT;
  return candidate.starts >= LOST_MIN && candidate.ms - candidate.error > best.ms * (1 + LOST) + best.error;
}

function checkPoints(points: readonly number[]): void {
  const rising = points.every((point, index) => Number.isSafeInteger(point) && point >= 0 && point > (points[index - 1] ?? -1));
  if (rising && points.length > 0) return;
  throw new ThawError("INVALID_ARGUMENT", {
    what: `Images cannot be taken at the heats ${JSON.stringify(points)}`,
    why: "Heats are whole numbers of requests, none negative, each above the one before",
    fix: "Use heats such as 0, 1, 10, 100, 1000",
  });
}
