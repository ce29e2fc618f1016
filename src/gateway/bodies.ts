/**
 * Bodies of requests, read whole. What a client sends it sends as it likes: byte by byte, each in a chunk of its own, or all but the last,
 * from a thousand connections. So a body lies in one buffer that grows with it, and what all of them hold together is bounded.
 */
import type { IncomingMessage, ServerResponse } from "node:http";
import { totalmem } from "node:os";
import { finished } from "node:stream";
import { ThawError } from "../base/errors.js";
import { formatBytes, KIB, MIB } from "../base/units.js";
import { cutShort } from "./upload.js";

/** What every body may hold, whatever others do: requests of this size are always read. */
const SMALL_BYTES = 64 * KIB;
/** What larger ones may hold together, on a machine of that much memory: 85 payloads at least. */
const largeBytesMax = (machineBytes: number): number => Math.max(512 * MIB, machineBytes / 16);

const NOTHING = Buffer.alloc(0);

/** All that are being read, or whose request was not answered yet. */
export class Bodies {
  #held = 0;

  /** @param bytesMax what those that are larger than {@link SMALL_BYTES} may hold beyond that, together */
  constructor(private readonly bytesMax = largeBytesMax(totalmem())) {}

  /**
   * The body of `request`, which `reply` will answer. Throws what `tooLarge` makes when it has more than `limit` bytes, RESOURCE_EXHAUSTED when
   * others hold too much: what is still sent then is nobody's.
   */
  async read(request: IncomingMessage, reply: ServerResponse, limit: number, tooLarge: () => ThawError): Promise<Buffer> {
    const announced = Number(request.headers["content-length"] ?? 0);
    if (announced > limit) throw tooLarge();
    await new Promise<void>((resolve) => process.nextTick(resolve));
    // What came together with its head lies there when that was taken apart, and needs nobody who listens: a third of what reading it took.
    if (announced > 0 && announced <= SMALL_BYTES && request.readableLength === announced) return request.read();
    let buffer = NOTHING;
    let filled = 0;
    reply.once("close", () => {
      this.#held -= beyondSmall(buffer);
    });
    const append = (chunk: Buffer): void => {
      const needed = filled + chunk.length;
      if (needed > limit) throw tooLarge();
      if (needed > buffer.length) {
        const larger = Buffer.allocUnsafe(Math.min(limit, Math.max(needed, 2 * buffer.length, Math.min(announced, SMALL_BYTES))));
        this.#hold(beyondSmall(larger) - beyondSmall(buffer));
        buffer.copy(larger, 0, 0, filled);
        buffer = larger;
      }
      chunk.copy(buffer, filled);
      filled = needed;
    };
    return new Promise((resolve, reject) => {
      const take = (chunk: Buffer): void => {
        try {
          append(chunk);
        } catch (error) {
          request.off("data", take);
          reject(error as Error);
        }
      };
      request.on("data", take);
      finished(request, { writable: false }, (error) => {
        if (error) reject(cutShort(error));
        else resolve(buffer.subarray(0, filled));
      });
    });
  }

  #hold(bytes: number): void {
    if (this.#held + bytes > this.bytesMax) throw tooMuch(this.bytesMax);
    this.#held += bytes;
  }
}

function beyondSmall({ length }: Buffer): number {
  return Math.max(0, length - SMALL_BYTES);
}

function tooMuch(bytesMax: number): ThawError {
  return new ThawError("RESOURCE_EXHAUSTED", {
    what: "The request's body was not read",
    why: `the server holds ${formatBytes(bytesMax)} of bodies that others have sent, which is the limit`,
    fix: "Try again later, or send less: a body of 64 KiB is always read",
  });
}
