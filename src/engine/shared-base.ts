/** What images share: the page space of their base, and the machine that they were made on. */
import { ThawError } from "../base/errors.js";
import { basePath, imageFiles, isMemory, type StoredImage } from "../image/index.js";
import type { Fingerprint } from "../linux/fingerprint.js";

/** A page space that images share: what is needed to go on sharing it. */
export interface SharedBase {
  readonly id: string;
  readonly digest: string;
  /** Hexadecimal. */
  readonly bytes: string;
  /** Of its page space. */
  readonly path: string;
  /** Where its pages were in memory: `start-end:slot,…`, hexadecimal. */
  readonly layout: string;
}

/** What an instance of this image shares with others: this image itself when it is a base, or the base that it was made from. */
export function sharedBase({ dir, manifest }: StoredImage): SharedBase {
  const { base, facts, id } = manifest;
  const layout = facts.regions
    .filter((region) => (base === undefined ? isMemory(region) : region.kind === "base") && (region.runs?.length ?? 0) > 0)
    .map(({ start, end, slot = 0n }) => `${start.toString(16)}-${end.toString(16)}:${slot.toString(16)}`)
    .join(",");
  if (base !== undefined) return { ...base, path: basePath(dir), layout };
  return { id, digest: facts.digest, bytes: `0x${facts.pageSpaceBytes.toString(16)}`, path: imageFiles(dir).pages, layout };
}

/** IMAGE_MISMATCH when it was made for another kernel or CPU, or has the runtime of another thaw in it. */
export function checkFingerprint(
  made: { kernel: string; cpu: string; runtime?: string | undefined },
  here: Fingerprint,
  dir: string,
): void {
  const mismatch = (thing: string, was: string, is: string): ThawError =>
    new ThawError("IMAGE_MISMATCH", {
      what: `the image ${dir} was made for another ${thing}`,
      why: `it was made for ${was}, this is ${is}`,
      fix: "the function boots and is frozen anew",
    });
  if (made.kernel !== here.kernel) throw mismatch("kernel", made.kernel, here.kernel);
  if (made.cpu !== here.cpu) throw mismatch("CPU", `features ${made.cpu.slice(0, 12)}`, `features ${here.cpu.slice(0, 12)}`);
  // What was mended in the runtime since, such as which random values are drawn anew, would never reach the function.
  if (made.runtime === here.runtime) return;
  const was = made.runtime === undefined ? "an older runtime" : `runtime ${made.runtime.slice(0, 12)}`;
  throw mismatch("thaw", was, `runtime ${here.runtime.slice(0, 12)}`);
}
