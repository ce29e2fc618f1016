/** Small things that the engine is made of. */
import { ThawError } from "../base/errors.js";
import type { Image } from "./types.js";

/** Rejects with the first failure in this order, whichever is told first: those behind it fail because of it. */
export async function inOrder<T>(promises: readonly Promise<T>[]): Promise<T[]> {
  for (const promise of promises) promise.catch(() => undefined);
  const results: T[] = [];
  for (const promise of promises) results.push(await promise);
  return results;
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

/** The error of everything that needs images, where there are none. */
export function bootOnly(): ThawError {
  return new ThawError("UNSUPPORTED_PLATFORM", {
    what: "this server runs functions without images",
    why: "it was started with --boot-only",
    fix: "start it without --boot-only",
  });
}
