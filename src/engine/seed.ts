/**
 * What a clone is told to renew itself from. Drawn ahead, and many at a time: for one, OpenSSL takes longer than all else that the server
 * does on the way of a start. Each is handed out once, and is not kept.
 */
import { randomBytes, randomUUID } from "node:crypto";
import type { ThawHeader } from "../runtime/frames.js";

const SEED_BYTES = 32;
const SEEDS_AT_ONCE = 32;

type Seed = Pick<ThawHeader, "id" | "entropy">;

const ahead: Seed[] = [];

function draw(): Seed {
  const entropy = randomBytes(SEED_BYTES * SEEDS_AT_ONCE);
  for (let at = 0; at < entropy.length; at += SEED_BYTES)
    ahead.push({ id: randomUUID(), entropy: entropy.toString("hex", at, at + SEED_BYTES) });
  return ahead.pop() as Seed;
}

/** See above; for one clone. */
export function takeSeed(): Seed {
  const seed = ahead.pop() ?? draw();
  if (ahead.length === 0) setImmediate(() => ahead.length === 0 && ahead.push(draw()));
  return seed;
}
