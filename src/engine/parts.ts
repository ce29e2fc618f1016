/** Small things that the engine is made of. */
import { ThawError } from "../base/errors.js";
import type { Image } from "./types.js";

/** Called once, and never in the turn of what it is the answer to: the error, or the value. */
export type Told<T> = (error: ThawError | undefined, value?: T) => void;

/** What is told, as a promise. */
export function promised<T>(begin: (told: Told<T>) => void): Promise<T> {
  return new Promise((resolve, reject) => {
    begin((error, value) => (error === undefined ? resolve(value as T) : reject(error)));
  });
}

/** Keeps what was told for whoever listens later. */
export class Outcome<T> {
  #listener: Told<T> | undefined;
  #told: Parameters<Told<T>> | undefined;

  readonly tell: Told<T> = (error, value) => {
    this.#told = [error, value];
    this.#listener?.(error, value);
  };

  /** `listener` hears of it when it is told, at once if it was. There is one. */
  hear(listener: Told<T>): void {
    this.#listener = listener;
    if (this.#told !== undefined) listener(...this.#told);
  }
}

/** Microseconds between two readings of the monotonic clock. */
export function usBetween(from: bigint, to: bigint): number {
  return Number(to - from) / 1000;
}

let labels = 0;
/** Tells engines of one process apart. */
export function nextLabel(): string {
  return String(++labels);
}

/** The error of using an image that this engine does not have open. */
export function notOpen(image: Image): ThawError {
  return new ThawError("IMAGE_NOT_READY", {
    what: `image ${image.id} is not open`,
    why: "it was removed, or belongs to another engine",
    fix: "open it with openImage",
  });
}

/** The error of whatever is asked of an engine that was closed, or was under way when it was. */
export function engineClosed(cause?: unknown): ThawError {
  const parts = { what: "the engine is closed", why: "whoever opened it has closed it", fix: "open another one" };
  return new ThawError("SHUTTING_DOWN", cause === undefined ? parts : { ...parts, cause });
}

/** The error of everything that needs images, where there are none. */
export function bootOnly(): ThawError {
  return new ThawError("UNSUPPORTED_PLATFORM", {
    what: "this server runs functions without images",
    why: "it was started with --boot-only",
    fix: "start it without --boot-only",
  });
}

/** Calls what somebody else gave. What it throws is theirs, who hear of it as of any uncaught error, and ends nothing of ours. */
export function callSafely(call: () => void): void {
  try {
    call();
  } catch (error) {
    setImmediate(() => {
      throw error;
    });
  }
}
