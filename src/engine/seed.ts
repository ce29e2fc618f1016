/** What a clone is told to renew itself from. Drawn ahead: OpenSSL takes longer for it than all else on the way of a start. */
import { randomBytes, randomUUID } from "node:crypto";
import type { ThawHeader } from "../runtime/frames.js";

let nextSeed: Pick<ThawHeader, "id" | "entropy"> | undefined;

function drawSeed(): Pick<ThawHeader, "id" | "entropy"> {
  return { id: randomUUID(), entropy: randomBytes(32).toString("hex") };
}

/** See above; for one clone. */
export function takeSeed(): Pick<ThawHeader, "id" | "entropy"> {
  const seed = nextSeed ?? drawSeed();
  nextSeed = undefined;
  setImmediate(() => {
    nextSeed ??= drawSeed();
  });
  return seed;
}
