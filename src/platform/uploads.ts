/**
 * Packages on their way in. A package may have hundreds of megabytes, and comes in pieces of any size, as slowly as its sender likes: so it goes to
 * a file as it comes, and is never whole in memory. That file loses its name before the first byte: whatever becomes of the sender, of the
 * deploy or of the server, its room on the disk is free again when it is closed.
 */
import { createHash } from "node:crypto";
import { type FileHandle, open, unlink } from "node:fs/promises";
import { join } from "node:path";
import { ThawError } from "../base/errors.js";
import { temporaryPath } from "../base/fsync.js";
import { formatBytes, KIB } from "../base/units.js";
import { resourceError } from "./resources.js";
import { LIMITS } from "./types.js";

/** Written at once, whatever the pieces are in which it comes. All that a package has in memory: many may come at once. */
const WRITE_BYTES = 64 * KIB;
/** Read at once, where many small files are read one after the other. */
const READ_BYTES = 256 * KIB;

/** SHA-256 of a package. */
export interface CodeHash {
  /** Names the directory. */
  readonly hex: string;
  /** Lambda's CodeSha256. */
  readonly base64: string;
}

/** A package that has come whole. */
export interface ReceivedPackage {
  readonly bytes: number;
  readonly hash: CodeHash;
  /** Up to `length` bytes from `at` on, fewer at the end. */
  read(at: number, length: number): Promise<Buffer>;
  /** Gives its room back. Idempotent. */
  close(): Promise<void>;
}

/** What a package is received from: bytes in pieces, or as they come. */
export type PackageSource = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

/** What one package, and what all that were received and not closed, may have. */
export interface UploadLimits {
  readonly packageBytes: number;
  readonly allBytes: number;
}

/** A dozen packages of the largest kind: who sends fills no disk that has more room than that. */
const DEFAULT_LIMITS: UploadLimits = { packageBytes: LIMITS.packedBytes, allBytes: 12 * LIMITS.packedBytes };

/** All that are being received, or were and are not closed. */
export class Uploads {
  #held = 0;

  /** @param dir where the files are that have no name: on the data directory's file system */
  constructor(
    private readonly dir: string,
    private readonly limits = DEFAULT_LIMITS,
  ) {}

  /** Reads `source` to its end. PAYLOAD_TOO_LARGE; RESOURCE_EXHAUSTED when the disk is full or others hold too much; what `source` throws. */
  async receive(source: PackageSource): Promise<ReceivedPackage> {
    const file = await nameless(this.dir).catch((error: unknown) => notReceived(error));
    const hash = createHash("sha256");
    const buffer = Buffer.allocUnsafe(WRITE_BYTES);
    let filled = 0;
    let bytes = 0;
    let open = true;
    const close = async (): Promise<void> => {
      if (!open) return;
      open = false;
      await file.close();
      this.#held -= bytes;
    };
    const flush = async (): Promise<void> => {
      const full = buffer.subarray(0, filled);
      this.#hold(filled);
      bytes += filled;
      filled = 0;
      hash.update(full);
      await file.writeFile(full).catch((error: unknown) => notReceived(error));
    };
    try {
      for await (const piece of source) {
        if (bytes + filled + piece.length > this.limits.packageBytes) throw packageTooLarge(this.limits.packageBytes);
        for (let at = 0; at < piece.length; ) {
          const taken = Math.min(piece.length - at, WRITE_BYTES - filled);
          buffer.set(piece.subarray(at, at + taken), filled);
          at += taken;
          filled += taken;
          if (filled === WRITE_BYTES) await flush();
        }
      }
      await flush();
    } catch (error) {
      await close();
      throw error;
    }
    const digest = hash.digest();
    return {
      bytes,
      hash: { hex: digest.toString("hex"), base64: digest.toString("base64") },
      read: readerOf(file, bytes),
      close,
    };
  }

  #hold(bytes: number): void {
    const { allBytes } = this.limits;
    if (this.#held + bytes > allBytes) {
      throw new ThawError("RESOURCE_EXHAUSTED", {
        what: "The code package was not received",
        why: `the server holds ${formatBytes(allBytes)} of packages that are being deployed, which is the limit`,
        fix: "Try again when others have been deployed",
      });
    }
    this.#held += bytes;
  }
}

/** Reads ahead: whoever reads 60,000 small files of a package asks the disk some hundred times. */
function readerOf(file: FileHandle, fileBytes: number): ReceivedPackage["read"] {
  let ahead = Buffer.alloc(0);
  let aheadAt = 0;
  return async (at, length) => {
    const end = Math.min(at + length, fileBytes);
    if (at < aheadAt || end > aheadAt + ahead.length) {
      const buffer = Buffer.allocUnsafe(Math.max(0, Math.min(Math.max(length, READ_BYTES), fileBytes - at)));
      let filled = 0;
      for (let read = -1; read !== 0 && filled < buffer.length; filled += read)
        read = (await file.read(buffer, filled, buffer.length - filled, at + filled)).bytesRead;
      if (length >= READ_BYTES) return buffer.subarray(0, Math.min(filled, length));
      ahead = buffer.subarray(0, filled);
      aheadAt = at;
    }
    return ahead.subarray(at - aheadAt, at - aheadAt + length);
  };
}

async function nameless(dir: string): Promise<FileHandle> {
  const path = temporaryPath(join(dir, "upload"));
  const file = await open(path, "wx+", 0o600);
  try {
    await unlink(path);
  } catch (error) {
    await file.close();
    throw error;
  }
  return file;
}

/** PAYLOAD_TOO_LARGE about a package. */
export function packageTooLarge(limit: number = LIMITS.packedBytes): ThawError {
  return new ThawError("PAYLOAD_TOO_LARGE", {
    what: "The code package is too large",
    why: `Packed it has more than ${formatBytes(limit)}, and unpacked it may have ${formatBytes(LIMITS.unpackedBytes)}`,
    fix: "Leave out what the function does not need at run time",
  });
}

function notReceived(error: unknown): never {
  throw resourceError(error, "The code package could not be received");
}
