import { readdir } from "node:fs/promises";
import { createServer, request as httpRequest, type Server } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { until } from "../platform/testing.js";
import { type Gateway, openGateway } from "./server.js";
import { openTestPlatform, type TestPlatform, testZip } from "./testing.js";
import { readUpload } from "./upload.js";

const LIMITS = { bytes: 1_000_000, pauseMs: 300, allMs: 900 };

describe("a body that is read as it comes", () => {
  let server: Server;
  let outcomes: (number | Error)[];
  beforeEach(async () => {
    outcomes = [];
    server = createServer((request, reply) => {
      const read = async (): Promise<number> => {
        let bytes = 0;
        for await (const piece of readUpload(request, LIMITS, () => new ThawError("PAYLOAD_TOO_LARGE", { what: "too large" })))
          bytes += piece.length;
        return bytes;
      };
      void read()
        .catch((error: Error) => error)
        .then((outcome) => {
          outcomes.push(outcome);
          request.resume();
          reply.end();
        });
    });
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
  });
  afterEach(() => {
    server.closeAllConnections();
    server.close();
  });

  function send(headers: Readonly<Record<string, string>> = {}) {
    const { port } = server.address() as AddressInfo;
    return httpRequest({ port, host: "127.0.0.1", method: "POST", headers, agent: false }).on("error", () => undefined);
  }

  it("comes whole, however long it takes in pieces", async () => {
    const request = send();
    for (let piece = 0; piece < 4; piece++) {
      request.write(Buffer.alloc(1_000));
      await pause(100);
    }
    request.end();
    await until(() => outcomes.length > 0);
    expect(outcomes).toEqual([4_000]);
  });

  it("is refused when it has more than the limit, announced or not, and when its client goes away", async () => {
    send({ "content-length": "1000001" }).flushHeaders();
    await until(() => outcomes.length === 1);
    send().end(Buffer.alloc(1_000_001));
    await until(() => outcomes.length === 2);
    const request = send({ "content-length": "1000" });
    request.write(Buffer.alloc(999));
    await pause(100);
    request.destroy();
    await until(() => outcomes.length === 3);
    expect(outcomes).toMatchObject([
      { code: "PAYLOAD_TOO_LARGE" },
      { code: "PAYLOAD_TOO_LARGE" },
      { code: "INVALID_ARGUMENT", why: "It ended before its body did" },
    ]);
  });

  it("is refused when nothing of it comes, or when it has no end", async () => {
    send().write("x");
    await until(() => outcomes.length === 1);
    const endless = send();
    while (outcomes.length < 2) {
      endless.write("x");
      await pause(50);
    }
    expect(outcomes).toMatchObject([{ why: "Nothing of it came for 0.3 s" }, { why: "It may take 0.9 s" }]);
  });
});

describe("a package that is sent", () => {
  let test: TestPlatform;
  let gateway: Gateway;
  beforeEach(async () => {
    test = await openTestPlatform();
    gateway = await openGateway({ platform: test.platform });
  });
  afterEach(async () => {
    await gateway.close();
    await test.close();
  });

  /** Starts to send a package that is told to have `bytes`. */
  function begin(name: string, bytes: number, headers: Readonly<Record<string, string>> = {}) {
    const options = { method: "POST", agent: false, headers: { "content-length": String(bytes), ...headers } } as const;
    const request = httpRequest(`${gateway.url}/thaw/v1/functions/${name}`, options);
    const reply = new Promise<{ status: number; text: string }>((resolve, reject) => {
      request.on("error", reject).on("response", async (response) => {
        let text = "";
        for await (const piece of response) text += piece;
        resolve({ status: response.statusCode ?? 0, text });
      });
    });
    reply.catch(() => undefined);
    return { request, reply };
  }

  const openFiles = async (): Promise<number> => (await readdir("/proc/self/fd")).length;
  const codeDir = (): string => join(test.dir, "data/functions");

  it("has more time than other requests, as long as it comes", async () => {
    // Node looks every two seconds.
    gateway.app.server.headersTimeout = 400;
    gateway.app.server.requestTimeout = 500;
    const zip = testZip();
    const { request, reply } = begin("slow", zip.length);
    for (const byte of zip.subarray(0, 12)) {
      request.write(Buffer.of(byte));
      await pause(300);
    }
    request.end(zip.subarray(12));
    expect((await reply).status).toBe(201);
    const other = connect(gateway.port, "127.0.0.1");
    other.write("POST /thaw/v1/functions/slow/heat?requests=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{");
    let text = "";
    for await (const piece of other) text += piece;
    expect(text).toContain("The request did not come to its end");
  }, 20_000);

  it("and does not come whole leaves nothing: no file, no descriptor, no function", async () => {
    await pause(100);
    const before = await openFiles();
    for (let turn = 0; turn < 3; turn++) {
      const { request } = begin("half", 5_000_000);
      request.write(Buffer.alloc(2_000_000));
      await until(() => request.socket !== null && request.socket.writableLength === 0);
      await pause(50);
      expect(await readdir(codeDir())).toEqual([]);
      request.destroy();
    }
    const deadline = performance.now() + 5_000;
    while ((await openFiles()) > before && performance.now() < deadline) await pause(20);
    expect(await openFiles(), "fewer where an earlier test's connection ended meanwhile").toBeLessThanOrEqual(before);
    expect([await readdir(codeDir()), test.platform.list()]).toEqual([[], []]);
  });

  it.each([
    ["of a function that exists", "POST", "hello", {}, "FUNCTION_EXISTS"],
    ["with a setting that cannot be", "PUT", "hello?memory=1", {}, "INVALID_ARGUMENT"],
    ["that is too large", "PUT", "hello", { "content-length": "999999999" }, "PAYLOAD_TOO_LARGE"],
  ])("%s is refused before any of it comes", async (_, method, path, headers, code) => {
    await test.platform.deploy({ name: "hello", zip: testZip() });
    const options = { method, agent: false, headers: { "content-length": "50000000", expect: "100-continue", ...headers } };
    const request = httpRequest(`${gateway.url}/thaw/v1/functions/${path}`, options);
    request.on("continue", () => expect.unreachable("it was asked for"));
    const text = await new Promise<string>((resolve, reject) => {
      request.on("error", reject).on("response", async (response) => {
        let body = "";
        for await (const piece of response) body += piece;
        resolve(body);
      });
      request.flushHeaders();
    });
    expect(JSON.parse(text).error.code).toBe(code);
    request.destroy();
  });

  it.each(["close", "Close", "keep-alive, close"])(
    "and refused is told so to who sends all of it and reads then (Connection: %s)",
    async (connection) => {
      await test.platform.deploy({ name: "hello", zip: testZip() });
      const bytes = 20_000_000;
      const socket = connect(Number(new URL(gateway.url).port), "127.0.0.1");
      socket.write(
        `POST /thaw/v1/functions/hello HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${bytes}\r\nConnection: ${connection}\r\n\r\n`,
      );
      await new Promise<void>((resolve, reject) => {
        socket.on("error", reject).write(Buffer.alloc(bytes), () => resolve());
      });
      let text = "";
      for await (const piece of socket) text += piece;
      expect(text).toMatch(/^HTTP\/1\.1 409 /);
    },
  );

  it("and refused in the middle is told so at once to who keeps the connection, though the rest of it never comes", async () => {
    const type = "multipart/form-data; boundary=b";
    const { request, reply } = begin("form", 5_000_000, { "content-type": type, connection: "keep-alive" });
    const began = performance.now();
    request.write('--b\r\nContent-Disposition: form-data; name="nothing"\r\n\r\n');
    const { status, text } = await reply;
    expect([status, JSON.parse(text).error.why]).toEqual([400, 'it has a part "nothing"']);
    // Well before the rest of it is given up.
    expect(performance.now() - began).toBeLessThan(3_000);
    request.destroy();
  });
});
