/**
 * Which images are open. An open one holds three or four descriptors in the keeper and some megabytes of compiled programs here, so
 * a server with ten thousand functions opens an image when it is first used, and closes the one that was not used for longest when
 * there are too many. A closed one is opened again by its next start, which then takes some milliseconds longer.
 */
import type { LoadedImage } from "./images.js";
import { notOpen } from "./parts.js";
import type { Image } from "./types.js";

/** The keeper may hold 20,000 descriptors; one of an open image are at most ten, its programs included. */
const OPEN_MAX = 1000;

/** See above. Directories are the keys. */
export class OpenImages {
  /** In order of use. */
  readonly #open = new Map<string, LoadedImage>();
  readonly #closed = new Map<string, Image>();
  readonly #opening = new Map<string, Promise<LoadedImage>>();
  readonly #users = new Map<LoadedImage, number>();
  /** Husk pools whose programs are this image's. */
  readonly #pools = new Map<string, LoadedImage>();

  /** @param openImage reads, checks and opens; `known`: what is known of it @param closeImage gives back what it holds, here and in the keeper */
  constructor(
    private readonly openImage: (dir: string, known?: Image) => Promise<LoadedImage>,
    private readonly closeImage: (loaded: LoadedImage) => void,
    private readonly max = OPEN_MAX,
  ) {}

  get(dir: string): LoadedImage | undefined {
    return this.#open.get(dir);
  }

  values(): Iterable<LoadedImage> {
    return this.#open.values();
  }

  get size(): number {
    return this.#open.size;
  }

  add(loaded: LoadedImage): void {
    this.#closed.delete(loaded.image.dir);
    this.#open.set(loaded.image.dir, loaded);
    this.#closeSurplus();
  }

  /** One that a former server made: opened when it is first used. */
  remember(image: Image): void {
    if (!this.#open.has(image.dir)) this.#closed.set(image.dir, image);
  }

  /** The image, opened if it was closed. IMAGE_NOT_READY if it was never here, and what opening it fails with. */
  use(image: Image): LoadedImage | Promise<LoadedImage> {
    const { dir } = image;
    if (!this.#open.has(dir) && !this.#closed.has(dir)) throw notOpen(image);
    return this.open(dir);
  }

  /** The image in that directory, opened if it is not: once, whoever asks meanwhile. What opening it fails with. */
  open(dir: string): LoadedImage | Promise<LoadedImage> {
    const open = this.#open.get(dir);
    if (open !== undefined) {
      this.#open.delete(dir);
      this.#open.set(dir, open);
      return open;
    }
    const opening = this.#opening.get(dir) ?? this.#openNow(dir);
    this.#opening.set(dir, opening);
    return opening;
  }

  #openNow(dir: string): Promise<LoadedImage> {
    const known = this.#closed.get(dir);
    const removed = (): boolean => this.#opening.get(dir) !== opening;
    const opening = this.openImage(dir, known)
      .then(
        (loaded) => {
          if (!removed()) {
            this.add(loaded);
            return loaded;
          }
          this.closeImage(loaded);
          throw notOpen(loaded.image);
        },
        (error: unknown) => {
          throw removed() && known !== undefined ? notOpen(known) : error;
        },
      )
      .finally(() => {
        if (this.#opening.get(dir) === opening) this.#opening.delete(dir);
      });
    return opening;
  }

  /** Keeps it open until the function that is returned was called. */
  hold(loaded: LoadedImage): () => void {
    this.#users.set(loaded, (this.#users.get(loaded) ?? 0) + 1);
    return () => {
      const left = (this.#users.get(loaded) ?? 1) - 1;
      if (left > 0) this.#users.set(loaded, left);
      else this.#users.delete(loaded);
    };
  }

  /** Keeps it open while a pool is filled with its programs. */
  holdForPool(key: string, loaded: LoadedImage | undefined): void {
    if (loaded === undefined) this.#pools.delete(key);
    else this.#pools.set(key, loaded);
  }

  /** Forgets it; the caller closes what is returned. */
  remove(dir: string): LoadedImage | undefined {
    const loaded = this.#open.get(dir);
    this.#open.delete(dir);
    this.#closed.delete(dir);
    this.#opening.delete(dir);
    return loaded;
  }

  #closeSurplus(): void {
    if (this.#open.size <= this.max) return;
    const held = new Set(this.#pools.values());
    let last: LoadedImage | undefined;
    for (const loaded of this.#open.values()) last = loaded;
    for (const [dir, loaded] of this.#open) {
      if (this.#open.size <= this.max) return;
      if (loaded === last || held.has(loaded) || this.#users.has(loaded)) continue;
      this.#open.delete(dir);
      this.#closed.set(dir, loaded.image);
      this.closeImage(loaded);
    }
  }
}
