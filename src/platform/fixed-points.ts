/**
 * Images at a few fixed heats, and the best of them for nearly every start (docs/design/heat.md).
 *
 * What is minimised is what the users of short-lived instances feel: the mean of an instance's first twenty requests, as far as instances live that
 * long here. Where each instance answers once it is the first request alone; where they live longer, the next ones weigh as much as there are of them.
 *
 *     untried image ──▶ tried TRIES times ──▶ best: nearly every start
 *                            │                  ▲ │ another one is better by 3 %
 *                            │                  │ ▼
 *                            └──▶ not best: one start in twenty at most, and so rarely that looking again costs 1 % ──▶ worse for sure: given up
 *
 * The next image is taken at the next point as long as the last step paid. A step is judged by starts from both its images; while these are too few, and
 * beyond the hottest image, by the requests that live instances answer: code that is compiled late shows there before any image has it.
 */
import { ThawError } from "../base/errors.js";
import type { HeatDecider, HeatPolicy, ImagePoint } from "./heat-policy.js";
import { LatencyEstimate, WINDOW } from "./latency-estimate.js";

export const HEAT_POINTS: readonly number[] = [0, 1, 10, 100, 1000];

export interface FixedPointsOptions {
  /** Starts from an image before it is judged. Default 5. */
  readonly tries?: number;
  /** A step to a hotter image has paid when it made starts faster by this part. Default 0.05. */
  readonly pays?: number;
  /** Part of the handler time that looking again at images that are not the best may cost. Default 0.01. */
  readonly curiosity?: number;
  /** Images kept at most, those made by hand included. Default 8. */
  readonly imagesMax?: number;
}

/** See above. INVALID_ARGUMENT unless `points` are whole, not negative and rising. */
export function fixedPoints(points: readonly number[] = HEAT_POINTS, options: FixedPointsOptions = {}): HeatPolicy {
  checkPoints(points);
  const settings = { tries: 5, pays: 0.05, curiosity: 0.01, imagesMax: 8, ...options };
  return { name: "fixed", begin: (random = Math.random) => new FixedPoints(points, settings, random) };
}

/** Of an instance, the requests that count: the first, the second to the fifth, and so on. Each stretch is estimated for itself. */
const STRETCHES: readonly number[] = [1, 5, 20];
/** Requests from this one on, counted from the thaw, are without its page faults: they show what the code itself costs. */
const SETTLED_REQUEST = 4;
/** Samples of either side before live instances are believed. */
const CURVE_MIN = 4;
/** The image in use is kept until another is better by this part: parked husks and page cache are its own. */
const SWITCH = 0.03;
/** A loser is given up when it is slower by this part, and by this many standard errors. */
const LOST = 0.1;
const CERTAIN = 4;
/** Starts of both before anything is given up for being slow: it does not come back. */
const LOST_MIN = 8;
/** An image that may be the best, within so many standard errors, is tried further. */
const DOUBT = 1;
/** Below so many starts most of them may have been unlucky. */
const HOPE_MAX = 16;
/** Part of the starts for images that are probably not the best and were hardly tried. */
const PATIENT = 0.1;
const LOOK_AGAIN_MAX = 1 / 20;
/** An image that was chosen this often for each try it needs, and never answered, will not. */
const SILENT = 3;
/** How fast the number of requests of an instance is learned. */
const LIFE_GAIN = 0.05;

type Settings = Required<FixedPointsOptions>;

/** What is known of one image. */
interface Known {
  readonly heat: number;
  chosen: number;
  /** Of each of the {@link STRETCHES}. */
  readonly stretches: readonly LatencyEstimate[];
  /** The first of them: as many samples as starts that answered. */
  readonly first: LatencyEstimate;
}

interface Score {
  readonly ms: number;
  readonly error: number;
  /** What it may be when luck was bad. */
  readonly hope: number;
}

type Compared = Pick<Score, "ms" | "error">;

class FixedPoints implements HeatDecider {
  private readonly known = new Map<number, Known>();
  /** The hottest image there ever was, and what it had to beat: they outlive their images, so that no point is taken twice. */
  private hottest: Known | undefined;
  private before: Known[] = [];
  private incumbent: number | undefined;
  /** How many requests of each stretch an instance answers. */
  private readonly weights: number[] = STRETCHES.map((_, index) => (index === 0 ? 1 : 0));
  /** Of live instances, by the first point that is not below the request. */
  private readonly curve: readonly LatencyEstimate[];

  constructor(
    private readonly points: readonly number[],
    private readonly settings: Settings,
    private readonly random: () => number,
  ) {
    this.curve = points.map(() => new LatencyEstimate());
  }

  choose(images: readonly ImagePoint[]): ImagePoint {
    this.meet(images);
    const image = this.untried(images) ?? this.lookAgain(images, this.best(images));
    this.of(image).chosen++;
    return image;
  }

  freezeAt(images: readonly ImagePoint[], from: ImagePoint): number | undefined {
    this.meet(images);
    const heat = Math.max(from.heat, this.hottest?.heat ?? 0);
    const next = this.points.find((point) => point > heat);
    return next !== undefined && this.pays(next) ? next : undefined;
  }

  answered(from: ImagePoint, request: number, ms: number): void {
    if (!(ms >= 0)) return;
    const served = request - from.heat;
    if (served < 1) return;
    const stretch = STRETCHES.findIndex((end) => served <= end);
    if (stretch >= 0) {
      this.of(from).stretches[stretch]?.add(ms);
      this.weigh(stretch);
    }
    if (served >= SETTLED_REQUEST) this.curve[this.points.findIndex((point) => point >= request)]?.add(ms);
  }

  /** Each start takes a part of the weights away, each request beyond the first gives it back: the balance is how many there are of a start. */
  private weigh(stretch: number): void {
    for (let index = 1; index < this.weights.length; index++) {
      const weight = this.weights[index] ?? 0;
      if (stretch === 0) this.weights[index] = weight * (1 - LIFE_GAIN);
      else if (stretch === index) this.weights[index] = weight + LIFE_GAIN;
    }
  }

  surplus(images: readonly ImagePoint[]): readonly ImagePoint[] {
    this.meet(images);
    const best = this.best(images);
    // The coldest one stays: nobody's requests are in it, it thaws when another does not, and what comes next is made from it.
    const coldest = images.reduce((low, image) => (image.heat < low.heat ? image : low));
    const others = images.filter((image) => image !== best && image !== coldest);
    const lost = others.filter((image) => this.lost(image, best));
    const rest = others.filter((image) => !lost.includes(image));
    const room = Math.max(0, this.settings.imagesMax - (images.length - others.length));
    const slowest = rest.sort((a, b) => this.rank(b) - this.rank(a)).slice(0, Math.max(0, rest.length - room));
    return [...lost, ...slowest];
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
    const first = new LatencyEstimate();
    const stretches = STRETCHES.map((_, index) => (index === 0 ? first : new LatencyEstimate()));
    const made: Known = { heat, chosen: 0, first, stretches };
    this.known.set(generation, made);
    if (this.hottest === undefined || heat > this.hottest.heat) {
      if (this.hottest !== undefined) this.before.push(this.hottest);
      this.hottest = made;
    }
    return made;
  }

  /**
   * From the hottest image downwards, each is tried until it is decided on. Below the first that has lost, the others wait for a tenth of
   * the starts: heat seldom harms, and where starts are few there is not one to waste.
   */
  private untried(images: readonly ImagePoint[]): ImagePoint | undefined {
    let waiting = false;
    for (const image of [...images].sort((a, b) => b.heat - a.heat || b.generation - a.generation)) {
      const undecided = this.undecided(image, images);
      if (undecided && (!waiting || this.random() < PATIENT)) return image;
      waiting ||= !undecided && this.isBeaten(image, images);
    }
    return undefined;
  }

  /** Whether more tries may teach something: it can still be the best, and not all is known that is ever remembered. */
  private undecided(image: ImagePoint, images: readonly ImagePoint[]): boolean {
    const { first, chosen } = this.of(image);
    const { tries } = this.settings;
    if (first.count >= WINDOW || chosen >= Math.max(tries, first.count) * SILENT) return false;
    return first.count < tries ? !images.some((other) => this.slower(image, other)) : !this.isBeaten(image, images);
  }

  /** Whether another image is better, not for sure but as far as can be hoped. */
  private isBeaten(image: ImagePoint, images: readonly ImagePoint[]): boolean {
    const { hope } = this.score(this.of(image));
    return images.some((other) => hope > this.rank(other) * (1 - SWITCH));
  }

  private best(images: readonly ImagePoint[]): ImagePoint {
    const [first, ...others] = [...images].sort((a, b) => b.heat - a.heat || b.generation - a.generation);
    if (first === undefined) throw new Error("A policy is asked to choose between no images");
    // In doubt the hotter one.
    let best = first;
    for (const colder of others) if (this.rank(colder) < this.rank(best) - this.doubt(colder, best)) best = colder;
    const incumbent = images.find(({ generation }) => generation === this.incumbent);
    if (incumbent !== undefined && this.rank(incumbent) * (1 - SWITCH) <= this.rank(best)) return incumbent;
    this.incumbent = best.generation;
    return best;
  }

  private doubt(a: ImagePoint, b: ImagePoint): number {
    const error = DOUBT * Math.hypot(this.score(this.of(a)).error, this.score(this.of(b)).error);
    return Number.isFinite(error) ? error : 0;
  }

  private lookAgain(images: readonly ImagePoint[], best: ImagePoint): ImagePoint {
    const others = images.length - 1;
    const bestMs = this.rank(best);
    let dice = this.random();
    for (const image of images) {
      if (image === best) continue;
      const { hope } = this.score(this.of(image));
      const extra = (Number.isNaN(hope) ? Number.POSITIVE_INFINITY : hope) - bestMs;
      const affordable = extra > 0 ? (this.settings.curiosity * bestMs) / (extra * others) : LOOK_AGAIN_MAX;
      // NaN where neither has answered: then there is nothing to compare with.
      const chance = Math.min(LOOK_AGAIN_MAX, affordable) || 0;
      if (dice < chance) return image;
      dice -= chance;
    }
    return best;
  }

  private lost(image: ImagePoint, best: ImagePoint): boolean {
    const { tries } = this.settings;
    const { first, chosen } = this.of(image);
    const champion = this.of(best).first.count;
    if (champion < tries) return false;
    if (first.count === 0) return chosen >= tries * SILENT;
    return first.count >= LOST_MIN && champion >= LOST_MIN && this.slower(image, best);
  }

  private slower(image: ImagePoint, than: ImagePoint): boolean {
    const a = this.score(this.of(image));
    const b = this.score(this.of(than));
    return a.ms - b.ms > Math.max(LOST * b.ms, CERTAIN * Math.hypot(a.error, b.error));
  }

  /** Lower is better. An image that has not answered comes last. */
  private rank(image: ImagePoint): number {
    const { ms } = this.score(this.of(image));
    return Number.isNaN(ms) ? Number.POSITIVE_INFINITY : ms;
  }

  private score({ stretches, first }: Known): Score {
    let [total, ms, squares, low] = [0, 0, 0, 0];
    let estimate = first;
    for (const [index, weight] of this.weights.entries()) {
      // While nothing is known of a stretch it is taken to be as slow as the one before.
      const own = stretches[index];
      if (own !== undefined && own.count > 2) estimate = own;
      total += weight;
      ms += weight * estimate.mean;
      low += weight * estimate.low;
      squares += (weight * estimate.error) ** 2;
    }
    const [mean, error] = [ms / total, Math.sqrt(squares) / total];
    return { ms: mean, error, hope: first.count < HOPE_MAX ? low / total : mean - DOUBT * error };
  }

  private pays(next: number): boolean {
    const { hottest, before } = this;
    const at = this.points.indexOf(next);
    const ahead = this.curveFell(at);
    if (hottest === undefined || before.length === 0 || ahead) return true;
    const tried = before.filter(({ first }) => first.count >= this.settings.tries);
    if (hottest.first.count < this.settings.tries || tried.length === 0) return !this.curveIsFlat(at - 1);
    const colder = tried.map((known) => this.score(known)).reduce((low, score) => (score.ms < low.ms ? score : low));
    return this.faster(this.score(hottest), colder);
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
    return before.ms - after.ms + Math.hypot(before.error, after.error) < this.settings.pays * before.ms;
  }

  private curveAround(at: number): [Compared | undefined, Compared | undefined] {
    const [before, after] = [this.curve[at - 1], this.curve[at]].map((estimate) =>
      estimate === undefined || estimate.count < CURVE_MIN ? undefined : { ms: estimate.mean, error: estimate.error },
    );
    return [before, after];
  }

  private faster(now: Compared, before: Compared): boolean {
    return before.ms - now.ms > Math.max(this.settings.pays * before.ms, Math.hypot(now.error, before.error));
  }
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
