/** A worker that writes one word into each of 2,500 pages of its memory in every request, and reads what it wrote back. */
const PAGE_BYTES = 4096;
const PAGES = 5_000;
const WRITTEN = 2_500;
const table = Buffer.allocUnsafeSlow(PAGES * PAGE_BYTES).fill(1);

export const handler = async (event) => {
  for (let index = 0; index < WRITTEN; index++) table.writeUInt32LE((event.seed + index) >>> 0, 2 * index * PAGE_BYTES + 128);
  let sum = 0;
  for (let index = 0; index < WRITTEN; index++) sum += table.readUInt32LE(2 * index * PAGE_BYTES + 128);
  return { written: WRITTEN, seed: event.seed, sum };
};
