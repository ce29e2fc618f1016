import { createServer, request as httpRequest, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { KIB, MIB } from "../base/units.js";
import { until } from "../platform/testing.js";
import { Bodies } from "./bodies.js";

const LIMIT = 2 * MIB;
const tooLarge = (): ThawError => new ThawError("PAYLOAD_TOO_LARGE", { what: "too large" });

let server: Server;
let outcomes: (Buffer | Error)[];
beforeEach(async () => {
  outcomes = [];
  // Room for one large body and a half.
  const bodies = new Bodies(3 * MIB);
  server = createServer((request, reply) => {
    void bodies
      .read(request, reply, LIMIT, tooLarge)
      .catch((error: Error) => error)
      .then((outcome) => {
        outcomes.push(outcome);
        request.resume();
        if (request.url !== "/held") reply.end();
      });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
});
afterEach(() => server.close());

/** Sends `bytes`, and ends unless told otherwise; destroyed with the server's connections. */
function send(bytes: Buffer, { path = "/", ends = true }: { path?: string; ends?: boolean } = {}) {
  const { port } = server.address() as AddressInfo;
  const request = httpRequest({ port, host: "127.0.0.1", path, method: "POST", agent: false });
  request.on("error", () => undefined).on("response", (reply: IncomingMessage) => reply.resume());
  request.write(bytes);
  if (ends) request.end();
  return request;
}

async function outcome(index: number): Promise<Buffer | Error | undefined> {
  await until(() => outcomes.length > index);
  return outcomes[index];
}

describe("a body", () => {
  it("comes whole, in as many pieces as there are, of any length up to its limit", async () => {
    for (const [index, bytes] of [1, 65_535, 65_536, 65_537, LIMIT].entries()) {
      const text = Buffer.alloc(bytes, "thaw");
      send(text);
      expect(text.equals((await outcome(index)) as Buffer)).toBe(true);
    }
  });

  it("of one byte more is refused", async () => {
    send(Buffer.alloc(LIMIT + 1));
    expect(await outcome(0)).toMatchObject({ code: "PAYLOAD_TOO_LARGE" });
  });

  it("that ends before its end is told as that, and gives back what it held", async () => {
    for (let index = 0; index < 4; index++) {
      const request = send(Buffer.alloc(1.5 * MIB), { ends: false });
      await new Promise((resolve) => setTimeout(resolve, 50));
      request.destroy();
      expect(await outcome(index)).toMatchObject({ code: "INVALID_ARGUMENT", why: "It ended before its body did" });
    }
  });
});

describe("bodies together", () => {
  it("are refused beyond what they may hold, in words that say so, but for small ones", async () => {
    const first = send(Buffer.alloc(LIMIT), { path: "/held" });
    await outcome(0);
    send(Buffer.alloc(LIMIT));
    expect(await outcome(1)).toMatchObject({
      code: "RESOURCE_EXHAUSTED",
      why: "the server holds 3 MiB of bodies that others have sent, which is the limit",
    });
    send(Buffer.alloc(64 * KIB));
    expect(await outcome(2)).toHaveLength(64 * KIB);
    // With the end of the first request there is room again, although it was never answered.
    first.destroy();
    for (let index = 3, read: unknown; !(read instanceof Buffer); index++) {
      send(Buffer.alloc(LIMIT));
      read = await outcome(index);
      expect(index).toBeLessThan(100);
    }
  });
});
