/**
 * Cuts the keeper's stream into messages. A message that lies whole in one chunk is a view of that chunk; one that
 * spans chunks is copied once, into a buffer of its own size.
 */
import { ABI_CONSTANTS, structBytes } from "../linux/abi.js";

/** One message from the keeper. */
export interface KeeperMessage {
  readonly type: number;
  readonly flags: number;
  readonly id: number;
  /** The tag of the request that this answers; 0 for events. */
  readonly tag: number;
  readonly payload: Buffer;
}

const HEAD_BYTES = structBytes("message");

/** Feeds on chunks, calls back with messages, in order and synchronously. */
export class FrameReader {
  readonly #onMessage: (message: KeeperMessage) => void;
  /** The beginning of a message that is not complete; of its final size once its head is known. */
  #partial: Buffer | undefined;
  #filled = 0;

  constructor(onMessage: (message: KeeperMessage) => void) {
    this.#onMessage = onMessage;
  }

  push(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      at = this.#partial === undefined ? this.#whole(chunk, at) : this.#continue(chunk, at);
    }
  }

  #whole(chunk: Buffer, at: number): number {
    const rest = chunk.length - at;
    const needed = rest < HEAD_BYTES ? HEAD_BYTES : HEAD_BYTES + payloadBytes(chunk, at);
    if (rest >= needed) {
      this.#deliver(chunk, at, needed);
      return at + needed;
    }
    this.#partial = Buffer.allocUnsafe(needed);
    this.#filled = chunk.copy(this.#partial, 0, at);
    return chunk.length;
  }

  #continue(chunk: Buffer, at: number): number {
    const partial = this.#partial as Buffer;
    const copied = chunk.copy(partial, this.#filled, at, Math.min(chunk.length, at + partial.length - this.#filled));
    this.#filled += copied;
    if (this.#filled < partial.length) return at + copied;
    if (partial.length === HEAD_BYTES && payloadBytes(partial, 0) > 0) {
      this.#partial = Buffer.allocUnsafe(HEAD_BYTES + payloadBytes(partial, 0));
      partial.copy(this.#partial);
    } else {
      this.#partial = undefined;
      this.#deliver(partial, 0, partial.length);
    }
    return at + copied;
  }

  #deliver(from: Buffer, at: number, bytes: number): void {
    this.#onMessage({
      type: from.readUInt16LE(at + 4),
      flags: from.readUInt16LE(at + 6),
      id: from.readUInt32LE(at + 8),
      tag: from.readUInt32LE(at + 12),
      payload: from.subarray(at + HEAD_BYTES, at + bytes),
    });
  }
}

function payloadBytes(from: Buffer, at: number): number {
  const bytes = from.readUInt32LE(at);
  if (bytes > ABI_CONSTANTS.MESSAGE_BYTES_MAX) throw new Error(`bug: the keeper announced a message of ${bytes} bytes`);
  return bytes;
}
