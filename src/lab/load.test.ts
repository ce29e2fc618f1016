import { createServer, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { HttpConnection, parseResponse } from "./http-connection.js";
import { generateLoad, loadFromChild } from "./load.js";

const servers: Server[] = [];

/** A toy server on an ephemeral loopback port. */
async function serve(listener: RequestListener): Promise<string> {
  const server = createServer(listener);
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

afterEach(() => {
  for (const server of servers.splice(0)) server.close().closeAllConnections();
});

const reply = (status: number, body: string, headers: Record<string, string> = {}): RequestListener => {
  return (request, response) => {
    request.resume();
    request.on("end", () => response.writeHead(status, { "content-length": Buffer.byteLength(body), ...headers }).end(body));
  };
};
const request = { method: "POST", path: "/", body: "{}" } as const;
/** What the toy servers answer. */
const right = { request, reply: {} };

describe("HttpConnection", () => {
  it("sends what was asked and keeps the connection for the next request", async () => {
    const sockets = new Set<unknown>();
    const url = await serve((incoming, response) => {
      sockets.add(incoming.socket);
      let body = "";
      incoming.on("data", (chunk) => (body += chunk));
      incoming.on("end", () => {
        const text = `${incoming.method} ${incoming.url} ${incoming.headers["x-thaw-prefer"]} ${body}`;
        response.writeHead(200, { "content-length": text.length, "X-Thaw-Start": "kind=boot" }).end(text);
      });
    });
    const connection = await HttpConnection.open(url);
    for (const body of ["1", "22"]) {
      const answer = await connection.request({
        method: "POST",
        path: "/a?b",
        headers: { "X-Thaw-Prefer": "thaw;dispose" },
        body,
      });
      expect(answer.body.toString()).toBe(`POST /a?b thaw;dispose ${body}`);
      expect(answer.headers["x-thaw-start"]).toBe("kind=boot");
      expect(answer.us).toBeGreaterThan(0);
    }
    connection.close();
    expect(sockets.size).toBe(1);
  });

  it("reports a server that hangs up, and does not wait for it again", async () => {
    const url = await serve((incoming) => incoming.socket.destroy());
    const connection = await HttpConnection.open(url);
    await expect(connection.request(request)).rejects.toThrow();
    expect(connection.usable).toBe(false);
    await expect(connection.request(request)).rejects.toThrow();
  });
});

describe("parseResponse", () => {
  const whole = Buffer.from("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b: c\r\n\r\nhello");

  it("waits for every byte, wherever the stream is cut", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: whole.length - 1 }), (cut) => {
        expect(parseResponse(whole.subarray(0, cut))).toBeUndefined();
      }),
    );
    expect(parseResponse(whole)).toMatchObject({ status: 200, headers: { "x-a": "b: c" }, body: Buffer.from("hello") });
  });

  it("refuses what it does not understand, with the reason", () => {
    const parse = (text: string) => () => parseResponse(Buffer.from(text));
    expect(parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")).toThrow(
      "response 200 without a usable Content-Length",
    );
    expect(parse("SSH-2.0-x\r\n\r\n")).toThrow("not an HTTP/1.1 response");
    expect(parse("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n")).toThrow("not a header line");
    expect(parse("x".repeat(70_000))).toThrow("larger than 64 KiB");
  });
});

describe("generateLoad", () => {
  it("stops at its count, with one latency for each answer", async () => {
    let served = 0;
    const answer = reply(200, "{}");
    const url = await serve((incoming, response) => {
      served += 1;
      answer(incoming, response);
    });
    const result = await generateLoad({ url, ...right, connections: 3, requestsMax: 40, msMax: 10_000, warmupPerConnection: 2 });
    expect(result).toMatchObject({ answered: 40, failed: 0, failures: [] });
    expect(result.samples).toHaveLength(40);
    expect(result.perSecond).toBeCloseTo(40 / result.seconds);
    expect(served).toBe(40 + 3 * 2);
  });

  it("stops at its time", async () => {
    const url = await serve(reply(200, "{}"));
    const result = await generateLoad({ url, ...right, connections: 1, requestsMax: 1e9, msMax: 100 });
    expect(result.seconds).toBeGreaterThanOrEqual(0.1);
    expect(result.seconds).toBeLessThan(2);
  });

  it("counts function errors, bad statuses and lost connections as failures and says why", async () => {
    const limits = { connections: 1, requestsMax: 2, msMax: 5_000, warmupPerConnection: 0 };
    const throttled = await generateLoad({ url: await serve(reply(429, "limit")), ...right, ...limits });
    expect(throttled).toMatchObject({ answered: 0, failed: 2, failures: ["status 429: limit", "status 429: limit"] });
    const broken = reply(200, "boom", { "X-Amz-Function-Error": "Unhandled" });
    expect(await generateLoad({ url: await serve(broken), ...right, ...limits })).toMatchObject({ answered: 0, failed: 2 });
    const gone = await generateLoad({ url: await serve((incoming) => incoming.socket.destroy()), ...right, ...limits });
    expect(gone).toMatchObject({ answered: 0, failed: 1 });
  });

  it("takes a wrong answer for a failure, whatever its status, and a right one for right however it is written", async () => {
    const answers = ['{"a":1,"b":2}', '{"a":1,"b":3}', "nonsense", '{ "b": 2, "a": 1 }'];
    const url = await serve((incoming, response) => reply(200, answers.shift() ?? "")(incoming, response));
    const limits = { connections: 1, requestsMax: 4, msMax: 5_000, warmupPerConnection: 0 };
    const result = await generateLoad({ url, request, reply: { a: 1, b: 2 }, ...limits });
    expect(result).toMatchObject({ answered: 2, failed: 2 });
    expect(result.failures).toEqual(['wrong reply: {"a":1,"b":3}', "wrong reply: nonsense"]);
    expect(result.samples).toHaveLength(2);
  });

  it("runs in a process of its own and reports its own CPU time", async () => {
    const url = await serve(reply(200, "{}"));
    const result = await loadFromChild({ url, ...right, connections: 2, requestsMax: 200, msMax: 10_000 });
    expect(result).toMatchObject({ answered: 200, failed: 0 });
    expect(result.cpuMs.user + result.cpuMs.system).toBeGreaterThan(0);
  });
});
