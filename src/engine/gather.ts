/** Has the page cache hold parts of a page space in as few pieces as it can (native/gather.c). */
import type { FileRange } from "../image/index.js";
import type { Keeper } from "./keeper.js";

/** Of a file. */
type Part = Pick<FileRange, "offset" | "bytes">;

/**
 * Drops what holds data in those parts, and in the rest of the windows of 64 KiB that they touch, from the page cache and writes the same bytes again, unless somebody maps
 * them: they stay as they are. The file's bytes do not change, its times do. Where the kernel or the file system has single pages only, all is read and nothing
 * written. Takes about 1 ms for each megabyte, and never rejects: what it brings is speed.
 */
export async function gather(keeper: Keeper, extractor: string, path: string, parts: readonly Part[]): Promise<void> {
  if (parts.length === 0) return;
  const file = keeper.fileBytes(encodeParts([...parts].sort((a, b) => (a.offset < b.offset ? -1 : 1))));
  try {
    await keeper.helper([extractor, "gather", path], { files: [file] });
  } catch {
    // The keeper ended, which everybody is told.
  } finally {
    keeper.closeFile(file);
  }
}

/** As the extractor reads them (native/gather.c: map_parts). */
export function encodeParts(parts: readonly Part[]): Buffer {
  const bytes = Buffer.alloc(parts.length * 16);
  for (const [index, part] of parts.entries()) {
    bytes.writeBigUInt64LE(part.offset, index * 16);
    bytes.writeBigUInt64LE(BigInt(part.bytes), index * 16 + 8);
  }
  return bytes;
}
