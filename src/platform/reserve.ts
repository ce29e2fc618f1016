/**
 * Room on the disk that is kept for the database, and given up when there is no other: the way to make room is to remove functions, and
 * a removal has to be recorded before anything is removed.
 */
import { appendFileSync, rmSync, statSync } from "node:fs";

/** A removal writes a few pages of 4 KiB. */
const RESERVE_BYTES = 256 * 1024;

/** See above. */
export class Reserve {
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
  }

  /** Takes what it lacks, or as much of that as there is. */
  take(): void {
    try {
      const missing = RESERVE_BYTES - this.#bytes();
      if (missing > 0) appendFileSync(this.#path, Buffer.alloc(missing), { mode: 0o600 });
    } catch {
      // What could be written is kept.
    }
  }

  giveUp(): void {
    rmSync(this.#path, { force: true });
  }

  #bytes(): number {
    return statSync(this.#path, { throwIfNoEntry: false })?.size ?? 0;
  }
}
