import { once } from "node:events";
import { request as httpRequest } from "node:http";
import { connect, type Socket } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MIB } from "../base/units.js";
import { until } from "../platform/testing.js";
import { type Gateway, openGateway } from "./server.js";
import { openTestPlatform, type TestPlatform, testZip } from "./testing.js";

let test: TestPlatform;
let gateway: Gateway;

beforeEach(async () => {
  test = await openTestPlatform();
  gateway = await openGateway({ platform: test.platform });
  await test.platform.deploy({ name: "hello", zip: testZip() });
  await test.platform.waitReady("hello");
});
afterEach(async () => {
  await gateway.close();
  await test.close();
});

const INVOKE = "/2015-03-31/functions/hello/invocations";
const invoke = (body: string) => fetch(gateway.url + INVOKE, { method: "POST", body });

/** Sends raw bytes and resolves to all that comes back before the server closes. */
function raw(bytes: string, then: (socket: Socket) => Promise<void> = async () => {}): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(gateway.port, "127.0.0.1", () => {
      socket.write(bytes);
      then(socket).catch(reject);
    });
    let reply = "";
    socket.on("data", (data) => {
      reply += data.toString();
    });
    socket.on("close", () => resolve(reply));
    socket.on("error", reject);
  });
}

describe("a real socket", () => {
  it("is bound to loopback", () => {
    expect(gateway.app.server.address()).toMatchObject({ address: "127.0.0.1", port: gateway.port });
    expect(gateway.url).toBe(`http://127.0.0.1:${gateway.port}`);
  });

  it("carries bytes in both directions unchanged", async () => {
    const text = JSON.stringify({ text: "naïve \u{1f9ca} \u0000".repeat(20_000) });
    const reply = await invoke(text);
    expect(reply.status).toBe(200);
    expect(await reply.json()).toEqual({ event: JSON.parse(text), function: "hello" });
  });

  it("answers a body that is sent in chunks without a length", async () => {
    const body = '3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n';
    const reply = await raw(
      `POST ${INVOKE} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n${body}`,
    );
    expect(reply).toMatch(/^HTTP\/1\.1 200 /);
    expect(reply).toContain('{"event":{"a":1},"function":"hello"}');
  });

  it("refuses a name that was pointed at loopback", async () => {
    const reply = await raw(`POST ${INVOKE} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}`);
    expect(reply).toMatch(/^HTTP\/1\.1 403 /);
    expect(reply).toContain("AccessDeniedException");
  });

  it.each([
    [
      "headers beyond their limit",
      `X-Amz-Client-Context: ${"a".repeat(70_000)}\r\n`,
      "Its address and headers are larger than 64 KiB",
    ],
    ["what is not HTTP", "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", "It is not HTTP/1.1"],
  ])("refuses %s in Lambda's shape, with the limit", async (_what, header, why) => {
    const [head = "", body = ""] = (await raw(`POST ${INVOKE} HTTP/1.1\r\nHost: localhost\r\n${header}\r\n`)).split("\r\n\r\n");
    expect(head).toMatch(/^HTTP\/1\.1 400 Bad Request\r\n/);
    expect(head).toContain("x-amzn-errortype: InvalidParameterValueException");
    expect(head).toMatch(/\r\nx-amzn-requestid: [0-9a-f-]{36}\r\n/);
    const { Type, message } = JSON.parse(body) as Record<string, string>;
    expect([Type, message]).toEqual(["User", expect.stringContaining(`The request cannot be read. ${why}`)]);
  });

  it.each([
    ["HTTP/1.1 without a Host", `POST ${INVOKE} HTTP/1.1\r\nConnection: close\r\n\r\n`, "It has no Host header", 400],
    [
      "an expectation that nobody knows",
      `POST ${INVOKE} HTTP/1.1\r\nHost: localhost\r\nExpect: tea\r\nContent-Length: 2\r\n\r\n`,
      'It expects "tea", which is unknown',
      400,
    ],
    [
      "two Hosts",
      "GET /metrics HTTP/1.1\r\nHost: localhost\r\nhost: evil.example\r\nConnection: close\r\n\r\n",
      "It has more than one Host header",
      400,
    ],
    [
      "an address of another host than its Host",
      "GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
      "Its address names another host than its Host header",
      400,
    ],
    [
      "to be a proxy",
      "CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
      "There is no operation CONNECT example.org:443",
      404,
    ],
  ])("refuses %s in Lambda's shape, and closes", async (_what, bytes, why, status) => {
    const [head = "", body = ""] = (await raw(bytes)).split("\r\n\r\n");
    expect(head).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `));
    expect(head).toMatch(/\r\nx-amzn-requestid: [0-9a-f-]{36}(\r\n|$)/);
    expect(head).toContain("x-amzn-errortype: ");
    const { Type, message, Message = message } = JSON.parse(body) as Record<string, string>;
    expect([Type, Message]).toEqual(["User", expect.stringContaining(why)]);
  });

  it.each([
    ["", "what is this\r\n\r\n"],
    [
      ", the body of another request",
      `POST ${INVOKE} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nno length\r\n`,
    ],
  ])("answers a request before it refuses what stands behind it and cannot be read%s", async (_, behind) => {
    let answer = (): void => undefined;
    const asked = new Promise<void>((resolve) => {
      test.engine.handler = () => {
        resolve();
        return new Promise((settle) => {
          answer = () => settle("answered");
        });
      };
    });
    const reply = raw(`POST ${INVOKE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}${behind}`);
    await asked;
    answer();
    const [first, second] = (await reply).split(/(?=HTTP\/1\.1 4)/);
    expect(first).toMatch(/^HTTP\/1\.1 200 OK\r\n[\s\S]*\r\n\r\n"answered"$/);
    expect(second).toMatch(/^HTTP\/1\.1 400 Bad Request\r\n[\s\S]*It is not HTTP\/1\.1/);
  });

  it("takes an address with its own host", async () => {
    const reply = await raw("GET http://LOCALHOST/thaw/v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    expect(reply).toMatch(/^HTTP\/1\.1 200 /);
  });

  it("keeps no more of a body that comes byte by byte, in chunks, than its bytes", async () => {
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    const heapBytes = (): number => {
      collect();
      return process.memoryUsage().heapUsed;
    };
    const before = heapBytes();
    const head = `POST ${INVOKE} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n`;
    const reply = raw(`${head}1\r\n"\r\n${"1\r\nx\r\n".repeat(1_000_000)}1\r\n"\r\n`, async (socket) => {
      await until(() => socket.bytesWritten > 0 && socket.writableLength === 0);
      await pause(500);
      expect(heapBytes() - before).toBeLessThan(40 * MIB);
      socket.write("0\r\n\r\n");
    });
    expect(await reply).toContain(`{"event":"${"x".repeat(1_000_000)}","function":"hello"}`);
  }, 30_000);

  it("cuts a payload without end at the limit", async () => {
    const status = await new Promise<number>((resolve, reject) => {
      const request = httpRequest(gateway.url + INVOKE, { method: "POST", agent: false }, (reply) => {
        resolve(reply.statusCode ?? 0);
        reply.resume();
      });
      // Once refused, writing into the closed connection fails; that is expected and not the point.
      request.on("error", reject);
      const chunk = Buffer.alloc(1024 * 1024, " ");
      for (let i = 0; i < 8; i++) request.write(chunk);
    });
    expect(status).toBe(413);
  });

  it.each([
    ["too large", INVOKE, 7_000_000, "413 Payload Too Large"],
    ["for nothing that is there", "/nothing", 2, "404 Not Found"],
  ])(
    "refuses a body that a client offers and that is %s without asking for it, and closes",
    async (_what, path, bytes, status) => {
      const reply = await raw(
        `POST ${path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: ${bytes}\r\n\r\n`,
      );
      expect(reply.split("\r\n")[0]).toBe(`HTTP/1.1 ${status}`);
      expect(reply).toMatch(/\r\nconnection: close\r\n/i);
    },
  );

  describe("asks for a body that a client offers", () => {
    const offer = `POST ${INVOKE} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n`;
    const linesOf = (text: string): string[] =>
      text.split(/\r\n|(?<=\})(?=HTTP)/).filter((line) => /^(HTTP|connection|\{)/i.test(line));
    const answer = (event: string, connection: string): string[] => [
      "HTTP/1.1 200 OK",
      expect.stringMatching(new RegExp(`^connection: ${connection}$`, "i")),
      `{"event":${event},"function":"hello"}`,
    ];

    it("and goes on with the connection", async () => {
      const socket = connect(gateway.port, "127.0.0.1");
      let text = "";
      socket.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
      });
      const expected: string[] = [];
      for (const [event, connection] of [
        ["{}", "keep-alive"],
        ["[]", "close"],
      ] as const) {
        socket.write(`${offer}Connection: ${connection}\r\n\r\n`);
        expected.push("HTTP/1.1 100 Continue");
        await until(() => linesOf(text).length === expected.length);
        socket.write(event);
        expected.push(...answer(event, connection));
        await until(() => linesOf(text).length === expected.length);
      }
      expect(linesOf(text)).toEqual(expected);
      socket.destroy();
    });

    it("and came with it before earlier requests were answered, and never in the middle of a reply", async () => {
      let secondAnswered = (): void => undefined;
      const second = new Promise<void>((resolve) => {
        secondAnswered = resolve;
      });
      test.engine.handler = async (event, { spec }) => {
        if (Array.isArray(event)) setTimeout(secondAnswered, 50);
        else await second;
        return { event, function: spec.name };
      };
      const text = await raw(`${offer}\r\n{}${offer}Connection: close\r\n\r\n[]`);
      expect(linesOf(text)).toEqual(["HTTP/1.1 100 Continue", ...answer("{}", "keep-alive"), ...answer("[]", "close")]);
    });
  });

  it("is cut where its client takes nothing of a large reply", async () => {
    const impatient = await openGateway({ platform: test.platform, readerMs: 500 });
    test.engine.handler = () => "x".repeat(6_000_000);
    const sockets: Socket[] = [];
    impatient.app.server.on("connection", (socket) => sockets.push(socket));
    const still = connect(impatient.port, "127.0.0.1").pause();
    still.write(`POST ${INVOKE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}`);
    await until(() => sockets[0]?.destroyed === true);
    still.destroy();
    await impatient.close();
  }, 40_000);

  it("takes the place of one that waits for a next request when there is no other", async () => {
    gateway.app.server.maxConnections = 3;
    const kept = Array.from({ length: 3 }, () => connect(gateway.port, "127.0.0.1"));
    for (const socket of kept) {
      socket.write("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
      await once(socket, "data");
    }
    const head = "GET /thaw/v1/health HTTP/1.1\r\nHost: localhost\r\n";
    expect(await raw(`${head}Connection: close\r\n\r\n`)).toMatch(/^HTTP\/1\.1 200 /);
    for (const socket of kept) socket.destroy();
  });

  it("has limits on time and size of a request's head", () => {
    const { headersTimeout, requestTimeout, maxConnections } = gateway.app.server;
    expect({ headersTimeout, requestTimeout, maxConnections }).toEqual({
      headersTimeout: 10_000,
      requestTimeout: 120_000,
      maxConnections: 4096,
    });
  });
});

describe("a port that is taken", () => {
  it("is an error that says so", async () => {
    await expect(openGateway({ platform: test.platform, port: gateway.port })).rejects.toThrow(
      `Cannot listen on 127.0.0.1:${gateway.port}. Another program listens there, perhaps another thaw. Stop it, or choose another port`,
    );
  });
});

describe("following logs", () => {
  it("shows entries as they come", async () => {
    test.engine.handler = (event, context) => context.log(`got ${event}\n`);
    const reply = await fetch(`${gateway.url}/thaw/v1/functions/hello/logs?follow=1`);
    const reader = reply.body?.getReader();
    let text = "";
    for (const number of ["1", "2"]) {
      await invoke(number);
      while (!text.includes(`got ${number}\n`)) text += new TextDecoder().decode((await reader?.read())?.value);
    }
    await reader?.cancel();
    expect(text.indexOf("got 1")).toBeLessThan(text.indexOf("got 2"));
  });

  it("holds next to nothing for a reader that stands still, which gets all of it", async () => {
    const sockets: Socket[] = [];
    gateway.app.server.on("connection", (socket) => sockets.push(socket));
    const reply = await fetch(`${gateway.url}/thaw/v1/functions/hello/logs?follow=1`);
    const printed = `x${"\u{1f9ca}".repeat(4 * MIB)}\n`;
    test.engine.handler = (_event, context) => context.log(printed);
    await invoke("{}");
    const [socket] = sockets;
    await until(() => (socket?.writableLength ?? 0) > 0);
    expect(socket?.writableLength).toBeLessThan(MIB);
    const reader = reply.body?.getReader();
    const chunks: Uint8Array[] = [];
    for (let last = ""; !last.includes("END RequestId"); last = Buffer.from(chunks.at(-1) ?? []).toString())
      chunks.push((await reader?.read())?.value ?? new Uint8Array());
    await reader?.cancel();
    expect(Buffer.concat(chunks).toString().includes(printed)).toBe(true);
  });

  it("ends when the server closes", async () => {
    const reply = await fetch(`${gateway.url}/thaw/v1/functions/hello/logs?follow=1`);
    const text = reply.text();
    await gateway.close();
    expect(await text).toBe("");
  });
});

describe("closing", () => {
  it("lets a running request end, and takes no new one", async () => {
    let release = (): void => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    test.engine.handler = () => held.then(() => "done");
    const running = invoke("{}");
    await expect.poll(() => test.platform.get("hello").counts.running).toBe(1);
    const closed = gateway.close(() => held);
    await expect(invoke("{}")).rejects.toThrow();
    release();
    expect(await (await running).json()).toBe("done");
    await closed;
  });

  it("does not wait for a client that sends half a request", async () => {
    const half = raw(`POST ${INVOKE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{`);
    await expect
      .poll(() => new Promise((resolve) => gateway.app.server.getConnections((_error, count) => resolve(count))))
      .toBe(1);
    const began = performance.now();
    await gateway.close();
    expect(performance.now() - began).toBeLessThan(30_000);
    await half;
  });

  it("is idempotent", async () => {
    await Promise.all([gateway.close(), gateway.close()]);
  });
});
