/**
 * What a clone is told to renew itself from. Drawn ahead, and many at a time: for one, OpenSSL takes longer than all else that the server
 * does on the way of a start. Each is handed out once, and is not kept.
 */
import { randomBytes, randomUUID } from "node:crypto";
import type { ThawHeader } from "../runtime/frames.js";

const SEED_BYTES = 32;
const SEEDS_AT_ONCE = 32;

let entropy = Buffer.alloc(0);
let used = 0;

function draw(): void {
  entropy = randomBytes(SEED_BYTES * SEEDS_AT_ONCE);
  used = 0;
}

/** See above; for one clone. */
export function takeSeed(): Pick<ThawHeader, "id" | "entropy"> {
  if (used >= entropy.length) draw();
  const own = entropy.subarray(used, used + SEED_BYTES);
  used += SEED_BYTES;
  const seed = { id: randomUUID(), entropy: own.toString("hex") };
  // A later clone's seed is no secret to whoever reads this memory; an earlier one's should be.
  own.fill(0);
  if (used >= entropy.length) setImmediate(() => used >= entropy.length && draw());
  return seed;
}
