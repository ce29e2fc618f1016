/**
 * The images of one version, coldest first, and the policy that decides between them (heat-policy.ts). In memory only: what is on
 * disk and in the database is the business of pools.ts.
 *
 * A generation is a number that one image of the version bears and no other will bear again, unless all were lost: then it begins
 * at 0 anew. Heat orders the images; generations only name them.
 */
import { assert } from "../base/errors.js";
import { z } from "../base/schema.js";
import type { Image } from "../engine/types.js";
import type { HeatDecider, HeatPolicy, ImagePoint } from "./heat-policy.js";
import type { ImageEntry } from "./types.js";

/** Images of one version at most (Pronghorn, EuroSys'24, §5). */
export const IMAGES_MAX = 14;
/** A choice counts for the favourite by this part of the one after it: the last dozen decide. */
const FADES = 15 / 16;
/** So many choices after an image came, and by this factor, another one must lead to become the favourite. */
const CHOICES_MIN = 8;
const LEADS = 1.5;
/** After so many choices the policy is asked again which images are surplus. */
const LOOK_EVERY = 64;

const SAVED = z.object({ policy: z.string(), learned: z.unknown() });
/** What is kept of a policy over a restart. */
export type SavedHeat = z.output<typeof SAVED>;

/** An image, and where it comes from. */
export interface PoolEntry extends Pick<ImageEntry, "source" | "createdMs"> {
  readonly image: Image;
}

/** See above. */
export class Generations {
  #decider: HeatDecider;
  #entries: PoolEntry[] = [];
  #images: Image[] = [];
  #next = 0;
  #favourite: Image | undefined;
  #choices = 0;
  readonly #votes = new Map<Image, number>();
  #changes = 0;
  #answers = 0;
  readonly #uses = new Map<Image, number>();
  readonly #unused = new Map<Image, () => void>();

  /** Called when the favourite has changed by choices, and now and then. */
  onLook: (() => void) | undefined;

  constructor(private readonly policy: HeatPolicy) {
    this.#decider = policy.begin();
  }

  /** Coldest first. */
  get entries(): readonly PoolEntry[] {
    return this.#entries;
  }

  get size(): number {
    return this.#images.length;
  }

  /** The numbers that they bear, rising. */
  get numbers(): number[] {
    return this.#images.map(({ generation }) => generation).sort((a, b) => a - b);
  }

  get hottest(): Image | undefined {
    return this.#images.at(-1);
  }

  /**
   * The image that the policy chooses most of late: husks are parked for it. Policies may draw lots, and count what they chose; so
   * they are not asked for this, but watched. After an image came, the hottest is taken for it until there were some choices.
   */
  get favourite(): Image | undefined {
    return this.#favourite;
  }

  /** The number that the next image will bear. */
  get next(): number {
    return this.#next;
  }

  /** Grows whenever an image came or went. */
  get changes(): number {
    return this.#changes;
  }

  /** Grows whenever the policy was told of an answer. */
  get answers(): number {
    return this.#answers;
  }

  has(image: Image): boolean {
    return this.#images.includes(image);
  }

  find(generation: number): Image | undefined {
    return this.#images.find((image) => image.generation === generation);
  }

  /** The image for the next start, which is to follow; undefined when there is none. */
  choose(): Image | undefined {
    if (this.#images.length < 2) return this.#images[0];
    const { generation } = this.#decider.choose(this.#images);
    const image = this.find(generation);
    assert(image !== undefined, `the heat policy "${this.policy.name}" chose generation ${generation}, which does not exist`);
    this.#vote(image);
    return image;
  }

  /** The request number after which an instance thawed from `from` shall be frozen. */
  freezeAt(from: ImagePoint): number | undefined {
    return this.#images.length === 0 ? undefined : this.#decider.freezeAt(this.#images, from);
  }

  /** An instance thawed from `from` answered. */
  answered(from: ImagePoint, request: number, ms: number): void {
    this.#answers += 1;
    this.#decider.answered(from, request, ms);
  }

  /** What the policy has learned, and which one it was; undefined when it keeps nothing. */
  save(): SavedHeat | undefined {
    const learned = this.#decider.save?.();
    return learned === undefined ? undefined : { policy: this.policy.name, learned };
  }

  /** Goes on with what {@link save} gave. Throws when it is none of this policy's; then all begins anew. */
  recall(saved: unknown): void {
    const { policy, learned } = SAVED.parse(saved);
    if (policy !== this.policy.name) throw new Error(`it was learned by the policy "${policy}"`);
    this.#decider = this.policy.begin(undefined, learned);
  }

  /** Whose turn it is to go: those that lost, and beyond {@link IMAGES_MAX} the coldest. Never all. */
  surplus(): Image[] {
    if (this.#images.length < 2) return [];
    const named = this.#decider.surplus(this.#images).map(({ generation }) => generation);
    const gone = this.#images.filter((image) => named.includes(image.generation));
    assert(gone.length < this.#images.length, `the heat policy "${this.policy.name}" gave up all images`);
    for (const image of this.#images) {
      if (this.#images.length - gone.length <= IMAGES_MAX) break;
      if (!gone.includes(image) && image !== this.#favourite) gone.push(image);
    }
    return gone;
  }

  add(entry: PoolEntry): void {
    const { generation } = entry.image;
    this.#entries.push(entry);
    this.#entries.sort((a, b) => a.image.heat - b.image.heat || a.image.generation - b.image.generation);
    this.#next = Math.max(this.#next, generation + 1);
    this.#changed();
    this.#votes.clear();
    this.#choices = 0;
    this.#favourite = this.hottest;
  }

  /** False when it is not there any more. The last one takes with it what the policy learned: all begins anew then. */
  remove(image: Image): boolean {
    if (!this.has(image)) return false;
    this.#entries = this.#entries.filter((entry) => entry.image !== image);
    if (this.#entries.length === 0) {
      this.#next = 0;
      this.#decider = this.policy.begin();
    }
    this.#changed();
    this.#votes.delete(image);
    if (this.#favourite === image) this.#favourite = this.#leader() ?? this.hottest;
    return true;
  }

  /** An instance is being started from it: it stays on disk until the function that is returned was called. */
  use(image: Image): () => void {
    this.#uses.set(image, (this.#uses.get(image) ?? 0) + 1);
    return () => {
      const left = (this.#uses.get(image) ?? 1) - 1;
      if (left > 0) {
        this.#uses.set(image, left);
        return;
      }
      this.#uses.delete(image);
      this.#unused.get(image)?.();
      this.#unused.delete(image);
    };
  }

  /** Calls `then` as soon as no start uses the image, which may be now. */
  whenUnused(image: Image, then: () => void): void {
    if (this.#uses.has(image)) this.#unused.set(image, then);
    else then();
  }

  #changed(): void {
    this.#images = this.#entries.map(({ image }) => image);
    this.#changes += 1;
  }

  #vote(image: Image): void {
    for (const [other, votes] of this.#votes) this.#votes.set(other, votes * FADES);
    this.#votes.set(image, (this.#votes.get(image) ?? 0) + 1);
    this.#choices += 1;
    if (this.#choices >= CHOICES_MIN && this.#favourite !== undefined) {
      const leader = this.#leader();
      const own = this.#votes.get(this.#favourite) ?? 0;
      if (leader !== undefined && leader !== this.#favourite && (this.#votes.get(leader) ?? 0) > LEADS * own) {
        this.#favourite = leader;
        this.onLook?.();
        return;
      }
    }
    if (this.#choices % LOOK_EVERY === 0) this.onLook?.();
  }

  #leader(): Image | undefined {
    let leader: Image | undefined;
    for (const [image, votes] of this.#votes) if (leader === undefined || votes > (this.#votes.get(leader) ?? 0)) leader = image;
    return leader;
  }
}
