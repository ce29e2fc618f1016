/**
 * A worker of about 365 MB resident that touches 7,500 pages of 80,000 at random in each request. `event.pages` seeds which
 * ones: the same value gives the same pages, so the caller chooses whether its requests share a working set.
 */
const PAGE_BYTES = 4096;
const PAGES = 80_000;
const TOUCHED = 7_500;
const data = Buffer.allocUnsafeSlow(PAGES * PAGE_BYTES);
for (let page = 0; page < PAGES; page++) {
  data.fill((page % 251) + 1, page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
  data.writeUInt32LE((page * 7_919 + 13) >>> 0, page * PAGE_BYTES + 64 * (page % 61));
}

/** mulberry32 */
function randomFrom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
}

export const handler = async (event) => {
  const next = randomFrom(event.pages);
  const seen = new Uint8Array(PAGES);
  let sum = event.seed;
  for (let touched = 0; touched < TOUCHED; ) {
    const page = next() % PAGES;
    if (seen[page] === 1) continue;
    seen[page] = 1;
    touched += 1;
    sum = (sum + data.readUInt32LE(page * PAGE_BYTES + 64 * (page % 61))) >>> 0;
  }
  return { touched: TOUCHED, seed: event.seed, sum };
};
