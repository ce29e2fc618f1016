/**
 * Blocks of 2 MiB that the page cache holds in one piece (`extractor gather`, native/cache.c), so that the kernel maps each by one entry when it
 * is first read: those that lie in one mapping, at the same place within 2 MiB in memory and in the page space, and hold something in at least
 * half of their pages. A piece takes the whole block's room in the page cache, which sparse ones are not worth.
 */
import { type Region, storedRuns } from "./facts.js";
import type { CountedRun, PageRun } from "./working-set.js";

const BLOCK_BYTES = 2n * 1024n * 1024n;
const STORED_BYTES_MIN = Number(BLOCK_BYTES) / 2;

/** One block. */
export interface Piece {
  readonly address: bigint;
  /** In the page space of the image, or of its base where `base` says so. */
  readonly offset: bigint;
  readonly base: boolean;
}

/**
 * All of an image, in order of address, but those in which a recorded start wrote: after its first private copy a block is mapped page by page.
 */
export function pieces(regions: readonly Region[], recorded: readonly CountedRun[] = []): Piece[] {
  const written = new Set(recorded.filter((run) => run.written > 0).flatMap(blocksOf));
  return regions
    .flatMap((region) => piecesOf(region))
    .filter(({ address }) => !written.has(address))
    .sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0));
}

function piecesOf(region: Region): Piece[] {
  const { kind, start, end, slot } = region;
  const mapped = (kind === "anon" || kind === "heap" || kind === "base") && region.wipe !== 1 && slot !== undefined;
  if (!mapped || (slot - start) % BLOCK_BYTES !== 0n) return [];
  const stored = new Map<bigint, number>();
  for (const { address, bytes } of storedRuns(region)) {
    const runEnd = address + BigInt(bytes);
    for (let block = address - (address % BLOCK_BYTES); block < runEnd; block += BLOCK_BYTES) {
      const from = address > block ? address : block;
      const to = runEnd < block + BLOCK_BYTES ? runEnd : block + BLOCK_BYTES;
      stored.set(block, (stored.get(block) ?? 0) + Number(to - from));
    }
  }
  return [...stored]
    .filter(([block, bytes]) => bytes >= STORED_BYTES_MIN && block >= start && block + BLOCK_BYTES <= end)
    .map(([block]) => ({ address: block, offset: slot + (block - start), base: kind === "base" }));
}

/**
 * Of pages that will be written, those that are worth copying before the function runs: all but those in `full` blocks. As a freeze
 * leaves it such a block is mapped by one entry when it is first read, and a private copy ahead of that keeps it from that (docs/design/thaw.md#loaders).
 */
export function copyWorthy(runs: readonly PageRun[], full: readonly Piece[]): PageRun[] {
  const blocks = new Set(full.map(({ address }) => address));
  return runs.flatMap(({ address, pages }) => {
    const end = address + BigInt(pages) * 4096n;
    return blocksOf({ address, pages }).flatMap((block) => {
      const from = address > block ? address : block;
      const to = end < block + BLOCK_BYTES ? end : block + BLOCK_BYTES;
      return blocks.has(block) ? [] : [{ address: from, pages: Number((to - from) / 4096n) }];
    });
  });
}

/** Addresses of the blocks that a run has pages in. */
function blocksOf({ address, pages }: PageRun): bigint[] {
  const end = address + BigInt(pages) * 4096n;
  const blocks: bigint[] = [];
  for (let block = address - (address % BLOCK_BYTES); block < end; block += BLOCK_BYTES) blocks.push(block);
  return blocks;
}
