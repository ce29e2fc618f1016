/**
 * The policy of Pronghorn (Kohli, Kharbanda, Bruno, Carreira and Fonseca, EuroSys'24): request-centric. Latency is learned by request number,
 * θ[n], as an exponentially weighted mean; an image of heat h is worth what its instances will do, the mean of θ over the next W requests.
 *
 *     which image?   softmax over the worth of all images         V(h) = mean of θ[h+1 … h+W]
 *     freeze when?   a request number of the range ahead, drawn with weight 1 / V(n)
 *     pool full?     the best 40 % stay, and a tenth of the others, drawn at random
 *
 * Parameters are those of the paper and its published code. What differs, and why, is in docs/design/heat.md: the softmax has no unit, W and the range
 * are learned, a hiccup is cut, and it stops.
 */
import { whole, z } from "../base/schema.js";
import type { HeatDecider, HeatPolicy, ImagePoint } from "./heat-policy.js";

/** See above. */
export function pronghorn(): HeatPolicy {
  return { name: "pronghorn", begin: (random = Math.random, saved) => new Pronghorn(random, saved) };
}

/** Images kept at most; the paper's C. */
const POOL_MAX = 14;
/** Part of a full pool that stays for being the best; the paper's p. */
const KEEP_BEST = 0.4;
/** Part of the rest that stays at random; the paper's γ. */
const KEEP_RANDOM = 0.1;
/** Weight of the newest latency in the mean; the paper's α. */
const SMOOTHING = 0.5;
/** Request numbers beyond this are not distinguished and not frozen at; the paper's R, there 100. */
const REQUESTS_MAX = 1_000;
/** An image that is worse by this part is chosen e times as seldom. */
const TEMPERATURE = 0.05;
/** Images taken at most, of one version of one function. */
const FREEZES_MAX = 6;
/** A hotter image has paid when it is better than all colder ones by this part; two in a row that did not end the freezing. */
const PAYS = 0.05;
/** Of the requests that an instance answers, the paper's W, there known to the platform. */
const LIFETIME_MAX = 20;
/** How fast the number of requests of an instance is learned. */
const LIFE_GAIN = 0.05;
/** Before anything lived, instances are taken to live this long: the paper's eviction rate in between. */
const REACH_MIN = 4;
/** The range ahead is this many times the longest life seen, so that heat grows geometrically as long as it pays. */
const REACH = 8;
/** A latency counts as at most so many times what is known: a hiccup is cut, a lasting change is followed within a few requests. */
const HICCUP = 1.5;
/** Starts from an image before it is said not to have paid. */
const TRIES = 5;
const PATIENCE = 2;
const MS_MAX = 1e9;
/** Latencies of nothing must not weigh infinitely. */
const MS_MIN = 1e-6;

/** What {@link Pronghorn.save} gives. `theta` ends with the last request that is known. */
const SAVED = z.object({
  theta: z.array(z.number().nonnegative()),
  starts: z.array(z.tuple([whole, whole])),
  heats: z.array(whole),
  taken: whole,
  furtherRequests: z.number().nonnegative(),
  longest: z.int().positive(),
});

class Pronghorn implements HeatDecider {
  /** θ by request number; 0: not known. Grows as far as requests go. */
  private theta = new Float64Array(32);
  /** Starts by generation, of the images that exist. */
  private readonly starts = new Map<number, number>();
  private taken = 0;
  /** Heat of the images ever taken, in order, by which steps are judged. */
  private readonly heats: number[] = [];
  /** Further requests of an instance after its first: see {@link weigh}. */
  private furtherRequests = 0;
  private longest = 1;

  constructor(
    private readonly random: () => number,
    saved?: unknown,
  ) {
    if (saved !== undefined) this.restore(SAVED.parse(saved));
  }

  choose(images: readonly ImagePoint[]): ImagePoint {
    this.meet(images);
    const [first] = images;
    if (first === undefined) throw new Error("A policy is asked to choose between no images");
    const worth = images.map(({ heat }) => this.worth(heat));
    const best = Math.min(...worth.map((ms) => ms ?? Number.POSITIVE_INFINITY));
    // What is not known is taken to be as good as the best: it is tried, and then it is known.
    const weights = worth.map((ms) => (ms === undefined ? 1 : Math.exp((best / ms - 1) / TEMPERATURE)));
    const chosen = images[this.draw(weights)] ?? first;
    this.starts.set(chosen.generation, (this.starts.get(chosen.generation) ?? 0) + 1);
    return chosen;
  }

  freezeAt(images: readonly ImagePoint[], from: ImagePoint): number | undefined {
    this.meet(images);
    if (this.taken >= FREEZES_MAX || this.stopped(images)) return undefined;
    const hottest = images.reduce((heat, image) => Math.max(heat, image.heat), from.heat);
    const last = Math.min(REQUESTS_MAX, from.heat + Math.max(REACH_MIN, REACH * this.longest));
    if (hottest >= last) return undefined;
    const worth = Array.from({ length: last - hottest }, (_, index) => this.worth(hottest + 1 + index));
    const best = Math.min(...worth.map((ms) => ms ?? Number.POSITIVE_INFINITY));
    const weights = worth.map((ms) => (ms === undefined || best === Number.POSITIVE_INFINITY ? 1 : best / ms));
    return hottest + 1 + this.draw(weights);
  }

  answered(from: ImagePoint, request: number, ms: number): void {
    const served = request - from.heat;
    if (!(ms >= 0) || !(served >= 1) || !Number.isSafeInteger(request)) return;
    this.weigh(served);
    if (request > REQUESTS_MAX) return;
    if (request >= this.theta.length) {
      const larger = new Float64Array(Math.min(REQUESTS_MAX + 1, Math.max(request + 1, 2 * this.theta.length)));
      larger.set(this.theta);
      this.theta = larger;
    }
    const known = this.theta[request] ?? 0;
    const sample = Math.max(MS_MIN, Math.min(ms, MS_MAX));
    this.theta[request] = known === 0 ? sample : known + SMOOTHING * (Math.min(sample, HICCUP * known) - known);
  }

  surplus(images: readonly ImagePoint[]): readonly ImagePoint[] {
    this.meet(images);
    if (images.length <= POOL_MAX) return [];
    const coldest = images.reduce((low, image) => (image.heat < low.heat ? image : low));
    const worth = (image: ImagePoint) => this.worth(image.heat) ?? 0;
    const rest = [...images].sort((a, b) => worth(a) - worth(b));
    const kept = new Set([coldest, ...rest.splice(0, Math.max(1, Math.round(KEEP_BEST * images.length)))]);
    for (let count = Math.round(KEEP_RANDOM * rest.length); count > 0; count--) {
      for (const image of rest.splice(Math.floor(this.random() * rest.length), 1)) kept.add(image);
    }
    return images.filter((image) => !kept.has(image));
  }

  save(): z.input<typeof SAVED> {
    const { taken, furtherRequests, longest } = this;
    const last = this.theta.findLastIndex((ms) => ms > 0);
    const theta = [...this.theta.subarray(0, last + 1)].map((ms) => Number(ms.toPrecision(4)));
    return { theta, starts: [...this.starts], heats: [...this.heats], taken, furtherRequests, longest };
  }

  private restore({ theta, starts, heats, taken, furtherRequests, longest }: z.output<typeof SAVED>): void {
    const known = theta.slice(0, REQUESTS_MAX + 1);
    this.theta = new Float64Array(Math.max(this.theta.length, known.length));
    this.theta.set(known);
    for (const [generation, count] of starts) this.starts.set(generation, count);
    this.heats.push(...heats);
    this.taken = taken;
    this.furtherRequests = furtherRequests;
    this.longest = longest;
  }

  private meet(images: readonly ImagePoint[]): void {
    for (const { generation, heat } of images) {
      if (this.starts.has(generation)) continue;
      this.starts.set(generation, 0);
      this.heats.push(heat);
      // The first of all was there before anybody decided anything.
      if (this.heats.length > 1) this.taken++;
    }
    if (this.starts.size === images.length) return;
    const generations = new Set(images.map(({ generation }) => generation));
    for (const generation of this.starts.keys()) if (!generations.has(generation)) this.starts.delete(generation);
  }

  /** Mean of θ over the next W requests after `heat`, of those that are known; milliseconds. */
  private worth(heat: number): number | undefined {
    const lifetime = Math.min(LIFETIME_MAX, Math.round(1 + this.furtherRequests));
    let sum = 0;
    let known = 0;
    for (let request = heat + 1; request <= heat + lifetime; request++) {
      const ms = this.theta[Math.min(request, REQUESTS_MAX)] ?? 0;
      if (ms === 0) continue;
      sum += ms;
      known++;
    }
    return known === 0 ? undefined : sum / known;
  }

  /** Each start takes a part away, each further request gives it back: the balance is how many there are of a start. */
  private weigh(served: number): void {
    if (served === 1) this.furtherRequests *= 1 - LIFE_GAIN;
    else if (served <= LIFETIME_MAX) this.furtherRequests += LIFE_GAIN;
    this.longest = Math.max(this.longest, Math.min(served, REQUESTS_MAX));
  }

  /** Whether the last two images were tried and neither was better than all that were taken before it. */
  private stopped(images: readonly ImagePoint[]): boolean {
    if (this.heats.length <= PATIENCE) return false;
    return this.heats.slice(-PATIENCE).every((heat) => {
      const colder = this.heats.slice(0, this.heats.indexOf(heat)).flatMap((other) => this.worth(other) ?? []);
      const worth = this.worth(heat);
      const image = images.find((other) => other.heat === heat);
      // One that is gone was given up.
      if (image !== undefined && (this.starts.get(image.generation) ?? 0) < TRIES) return false;
      return worth !== undefined && worth > Math.min(...colder) * (1 - PAYS);
    });
  }

  /** An index, drawn with these weights. */
  private draw(weights: readonly number[]): number {
    let left = this.random() * weights.reduce((sum, weight) => sum + weight, 0);
    for (const [index, weight] of weights.entries()) {
      left -= weight;
      if (left < 0) return index;
    }
    return weights.length - 1;
  }
}
