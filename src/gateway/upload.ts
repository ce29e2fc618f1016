/**
 * Bodies that are too large for memory: read in pieces, as fast as whoever takes them takes them, and as slowly as a network may be. So the time that other
 * requests have does not hold for them: a pause is limited, and all of it.
 */
import type { IncomingMessage } from "node:http";
import type { Socket } from "node:net";
import { ThawError } from "../base/errors.js";

/** What a body must keep to. */
export interface UploadLimits {
  readonly bytes: number;
  /** How long nothing may come. */
  readonly pauseMs: number;
  readonly allMs: number;
}

/** 300 MiB at 1.4 Mbit/s. */
export const UPLOAD_MS: Pick<UploadLimits, "pauseMs" | "allMs"> = { pauseMs: 30_000, allMs: 1_800_000 };

/** Connections over which such a body comes. */
const uploading = new WeakSet<Socket>();

/** Whether `socket` has limits of its own, and Node's time for a request does not count. */
export function isUploading(socket: Socket): boolean {
  return uploading.has(socket);
}

/** The body of `request`. Throws what `tooLarge` makes, INVALID_ARGUMENT when it ends early or takes too long; what is still sent then is nobody's. */
export async function* readUpload(
  request: IncomingMessage,
  limits: UploadLimits,
  tooLarge: () => ThawError,
): AsyncGenerator<Uint8Array> {
  if (Number(request.headers["content-length"] ?? 0) > limits.bytes) throw tooLarge();
  const { socket } = request;
  const deadline = performance.now() + limits.allMs;
  // Its end must not end the connection: there is a reply to come.
  const pieces = request.iterator({ destroyOnReturn: false }) as AsyncIterator<Buffer>;
  uploading.add(socket);
  try {
    for (let bytes = 0; ; ) {
      const { done, value } = await next(pieces, limits, deadline);
      if (done === true) return;
      bytes += value.length;
      if (bytes > limits.bytes) throw tooLarge();
      yield value;
    }
  } finally {
    uploading.delete(socket);
    // Else it would be read by the iterator alone. Not awaited: there may be nothing to come.
    pieces.return?.().catch(() => undefined);
  }
}

async function next(
  pieces: AsyncIterator<Buffer>,
  { pauseMs, allMs }: UploadLimits,
  deadline: number,
): Promise<IteratorResult<Buffer, undefined>> {
  let timer: NodeJS.Timeout | undefined;
  const left = deadline - performance.now();
  const late = new Promise<never>((_, reject) => {
    const why = left < pauseMs ? `It may take ${allMs / 1000} s` : `Nothing of it came for ${pauseMs / 1000} s`;
    timer = setTimeout(() => reject(tooSlow(why)), Math.max(0, Math.min(left, pauseMs)));
  });
  try {
    return await Promise.race([pieces.next(), late]);
  } catch (error) {
    throw error instanceof ThawError ? error : cutShort(error);
  } finally {
    clearTimeout(timer);
  }
}

function tooSlow(why: string): ThawError {
  return new ThawError("INVALID_ARGUMENT", {
    what: "The request did not come to its end",
    why,
    fix: "Try again over a faster network",
  });
}

/** INVALID_ARGUMENT about a client that went away. */
export function cutShort(cause: unknown): ThawError {
  return new ThawError("INVALID_ARGUMENT", { what: "The request cannot be read", why: "It ended before its body did", cause });
}
