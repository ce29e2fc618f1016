/** Has the page cache hold blocks of a page space in one piece each: image/pieces.ts says which, native/cache.c how. */
import type { CountedRun, Facts } from "../image/index.js";
import { pieces } from "../image/index.js";
import type { Keeper } from "./keeper.js";

/**
 * Drops those blocks of `path` from the page cache and reads them again, unless somebody maps them: they stay as they are. Where the kernel or the file
 * system has no large pieces, they are read again as ever. Takes some 0.5 ms for each block, and never rejects: what it brings is speed.
 *
 * @param all the rest of the file is read, too, where the page cache lacks it
 */
export async function gather(
  keeper: Keeper,
  extractor: string,
  { facts, runs }: { facts: Facts; runs?: readonly CountedRun[] },
  path: string,
  all = false,
): Promise<void> {
  const own = pieces(facts.regions, runs).filter(({ base }) => !base);
  if (own.length === 0 && !all) return;
  const offsets = own.map(({ offset }) => offset).sort((a, b) => (a < b ? -1 : 1));
  const bytes = Buffer.alloc(offsets.length * 8);
  for (const [index, offset] of offsets.entries()) bytes.writeBigUInt64LE(offset, index * 8);
  const blocks = keeper.fileBytes(bytes);
  try {
    await keeper.helper([extractor, "gather", path, ...(all ? ["all"] : [])], { files: [blocks] });
  } catch {
    // The keeper ended, which everybody is told.
  } finally {
    keeper.closeFile(blocks);
  }
}
