/**
 * Freezing an instance that goes on serving requests.
 *
 *   requests    ──▶──▶──▶──▶──▶──▶──▶──▶ │ held            │ ──▶──▶──▶──▶──▶──▶
 *   extractor     copies ahead, in rounds │ hooks ▶ stop     │ stores
 *                                      "r"│       "s"     "l"│
 *
 * Nobody but the engine knows when no request is in the instance, and nobody but the extractor when it runs again: the two talk through
 * a socket in the image's temporary directory. Whoever of them gives up closes it; that ends the other's part, and the instance goes on.
 */
import { once } from "node:events";
import { open } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { nowMs } from "../base/clock.js";
import { faultPoint } from "../base/fault.js";
import type { LiveInstance } from "./instance.js";
import type { HelperResult } from "./keeper-messages.js";

/** Name of the socket within the directory. */
const SOCKET = "live";
/** One byte each, as native/extractor.c has them. */
const READY = 0x72;
const STOP = "s";
const RELEASED = 0x6c;

/** What became of the stop. */
export interface LiveStop {
  readonly ended: HelperResult;
  /** Absent when it did not come to the stop. */
  readonly heldMs?: number;
}

/** The engine's end of the socket. */
class Channel {
  #socket: Socket | undefined;
  readonly #waiting = new Map<number, () => void>();

  private constructor(private readonly stopListening: () => Promise<void>) {}

  static async listen(dir: string): Promise<Channel> {
    // By a descriptor: the path of a data directory may be longer than the name of a socket.
    const handle = await open(dir, "r");
    const server = createServer();
    const channel = new Channel(async () => {
      server.close();
      await handle.close();
    });
    server.on("connection", (socket) => channel.#connected(socket));
    server.maxConnections = 1;
    try {
      server.listen(`/proc/self/fd/${handle.fd}/${SOCKET}`);
      await once(server, "listening");
    } catch (error) {
      await channel.close();
      throw error;
    }
    return channel;
  }

  /** Resolves when the extractor says so. */
  told(what: number): Promise<void> {
    return new Promise((resolve) => this.#waiting.set(what, resolve));
  }

  stop(): void {
    this.#socket?.write(STOP);
  }

  /** The name in the directory goes with it. */
  async close(): Promise<void> {
    this.#socket?.destroy();
    await this.stopListening();
  }

  #connected(socket: Socket): void {
    this.#socket = socket;
    // That it ended is told by the end of the helper.
    socket.on("error", () => undefined);
    socket.on("data", (bytes) => {
      for (const byte of bytes) this.#waiting.get(byte)?.();
    });
  }
}

/**
 * Runs the extractor with the word that makes it freeze a live process. `hooks` are run while requests are held, `renew` before they go
 * on. Rejects with what the hooks rejected with, or why the instance is over.
 */
export async function extractLive(
  instance: LiveInstance,
  dir: string,
  extract: (word: string) => Promise<HelperResult>,
  { hooks, renew }: { readonly hooks: () => Promise<void>; readonly renew: () => void },
): Promise<LiveStop> {
  const channel = await Channel.listen(dir);
  const ready = channel.told(READY);
  const released = channel.told(RELEASED);
  const extracting = extract(`live=${SOCKET}`);
  const over = extracting.then(
    () => undefined,
    () => undefined,
  );
  try {
    const begun = await Promise.race([ready.then(() => true), over.then(() => false)]);
    if (!begun) return { ended: await extracting };
    faultPoint("freeze-live-ready");
    const hold = instance.gate.hold(instance.busy);
    const release = await Promise.race([hold, over]);
    if (release === undefined) {
      void hold.then((late) => late());
      return { ended: await extracting };
    }
    const heldSince = nowMs();
    let heldMs: number;
    try {
      if (!instance.alive) throw instance.exitError();
      await hooks();
      faultPoint("freeze-live-held");
      channel.stop();
      await Promise.race([released, over]);
    } finally {
      if (instance.alive) renew();
      heldMs = nowMs() - heldSince;
      release();
    }
    faultPoint("freeze-live-released");
    return { ended: await extracting, heldMs };
  } finally {
    await channel.close();
    await over;
  }
}
