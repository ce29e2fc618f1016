/**
 * Blocks of 2 MiB that the page cache holds in one piece (`extractor gather`, native/cache.c), so that the kernel maps each by one entry when it
 * is first read: those that lie in one mapping, at the same place within 2 MiB in memory and in the page space, and hold something in at least
 * half of their pages. A piece takes the whole block's room in the page cache, which sparse ones are not worth.
 */
import { type Region, storedRuns } from "./facts.js";
import type { PageRun } from "./working-set.js";

const BLOCK_BYTES = 2n * 1024n * 1024n;
const STORED_BYTES_MIN = Number(BLOCK_BYTES) / 2;

/** One block. */
export interface Piece {
  readonly address: bigint;
  /** In the page space of the image, or of its base where `base` says so. */
  readonly offset: bigint;
  readonly base: boolean;
}

/** All of an image, in order of address. */
export function pieces(regions: readonly Region[]): Piece[] {
  return regions
    .flatMap((region) => piecesOf(region))
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
 * Of pages that will be written, those that are worth copying before the function runs: all but those in {@link pieces}. Such a block the
 * kernel maps by one entry when it is first read; the first private copy in it keeps it from that, and each 64 KiB that is
 * read there then takes a fault of its own (docs/design/thaw.md#loaders).
 */
export function copyWorthy(runs: readonly PageRun[], inPieces: readonly Piece[]): PageRun[] {
  const blocks = new Set(inPieces.map(({ address }) => address));
  return runs.flatMap(splitByBlock).flatMap(({ block, run }) => (blocks.has(block) ? [] : [run]));
}

function splitByBlock(run: PageRun): { block: bigint; run: PageRun }[] {
  const parts: { block: bigint; run: PageRun }[] = [];
  const end = run.address + BigInt(run.pages) * 4096n;
  for (let at = run.address; at < end; ) {
    const block = at - (at % BLOCK_BYTES);
    const until = block + BLOCK_BYTES < end ? block + BLOCK_BYTES : end;
    parts.push({ block, run: { address: at, pages: Number((until - at) / 4096n) } });
    at = until;
  }
  return parts;
}
