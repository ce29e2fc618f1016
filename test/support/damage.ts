/** Damages an image the way a disk does: one bit, the length and everything else as before. */
import { closeSync, openSync, readFileSync, readSync, writeSync } from "node:fs";
import { decodeRawManifest, imageFiles } from "../../src/image/index.js";

/** Inverts the lowest bit of the byte at `offset`. */
export function flipBit(path: string, offset: number): void {
  const file = openSync(path, "r+");
  try {
    const byte = Buffer.alloc(1);
    if (readSync(file, byte, 0, 1, offset) !== 1) throw new Error(`${path} has no byte ${offset}`);
    byte.writeUInt8(byte.readUInt8(0) ^ 1);
    writeSync(file, byte, 0, 1, offset);
  } finally {
    closeSync(file);
  }
}

/** In the middle of the first page that the page space stores. */
export function flipStoredBit(dir: string): void {
  const { manifest, pages } = imageFiles(dir);
  const { facts } = decodeRawManifest(readFileSync(manifest), manifest);
  const region = facts.regions.find(({ slot, runs }) => slot !== undefined && (runs?.length ?? 0) > 0);
  if (region?.slot === undefined) throw new Error(`image ${dir} stores no page`);
  flipBit(pages, Number(region.slot) + (region.runs?.[0] ?? 0) * 4096 + 2048);
}
