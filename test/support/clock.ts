/** An image as it would be after a reboot, or on a machine that started later: its clocks are ahead of this one's. */
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import type { Engine, Image } from "../../src/engine/index.js";
import { decodeRawManifest, encodeManifest, imageFiles } from "../../src/image/index.js";

const NS_PER_S = 1_000_000_000n;

/** Moves the clocks that an image recorded into the future, and opens it anew. The image given is of no use afterwards. */
export function openFromTheFuture(engine: Engine, image: Image, seconds: number): Promise<Image> {
  const dir = `${image.dir}-future`;
  renameSync(image.dir, dir);
  const path = imageFiles(dir).manifest;
  const manifest = decodeRawManifest(readFileSync(path), path);
  const { clock } = manifest.facts;
  for (const name of ["monotonicNs", "boottimeNs"] as const) {
    clock[name] = `0x${(BigInt(clock[name]) + BigInt(seconds) * NS_PER_S).toString(16)}`;
  }
  manifest.fingerprint.bootId = "another boot";
  writeFileSync(path, encodeManifest(manifest));
  return engine.openImage(dir);
}
