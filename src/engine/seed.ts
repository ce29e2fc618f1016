/** What a clone is told to renew itself from. Drawn ahead: for one, OpenSSL takes longer than all else that the server does on the way of a start. */
import { randomBytes, randomUUID } from "node:crypto";
import { drawnAhead } from "../base/ahead.js";
import type { ThawHeader } from "../runtime/frames.js";

const SEED_BYTES = 32;
const SEEDS_AT_ONCE = 32;

/** See above; for one clone. */
export const takeSeed = drawnAhead((): Pick<ThawHeader, "id" | "entropy">[] => {
  const entropy = randomBytes(SEED_BYTES * SEEDS_AT_ONCE);
  return Array.from({ length: SEEDS_AT_ONCE }, (_, index) => ({
    id: randomUUID(),
    entropy: entropy.toString("hex", index * SEED_BYTES, (index + 1) * SEED_BYTES),
  }));
});
