import type { FastifyInstance } from "fastify";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { buildGateway } from "./server.js";
import { openTestPlatform, type TestPlatform, testZip } from "./testing.js";

let test: TestPlatform;
let app: FastifyInstance;

beforeEach(async () => {
  test = await openTestPlatform();
  app = buildGateway(test.platform);
});
afterEach(async () => {
  await app.close();
  await test.close();
});

const deploy = (query = "", method: "POST" | "PUT" = "POST", name = "hello") =>
  app.inject({
    method,
    url: `/thaw/v1/functions/${name}${query}`,
    payload: testZip(),
    headers: { "content-type": "application/zip" },
  });

describe("deploy", () => {
  it("creates a function from the query and the zip in the body", async () => {
    const reply = await deploy(
      "?runtime=nodejs20.x&handler=index.handler&memory=256&timeout=2.5&tmp=1024&maxInstances=3&provisioned=2&env=A=1&env=B=x%3Dy",
    );
    expect(reply.statusCode).toBe(201);
    expect(reply.json()).toMatchObject({
      name: "hello",
      runtime: "nodejs20.x",
      handler: "index.handler",
      memoryMb: 256,
      timeoutMs: 2500,
      tmpMb: 1024,
      maxInstances: 3,
      provisioned: 2,
      env: { A: "1", B: "x=y" },
    });
  });

  it("takes a single environment variable, and an empty value", async () => {
    expect((await deploy("?env=A=")).json().env).toEqual({ A: "" });
  });

  it("refuses a name that is taken, unless replaced with PUT", async () => {
    await deploy();
    const again = await deploy();
    expect(again.statusCode).toBe(409);
    expect(again.json().error.code).toBe("FUNCTION_EXISTS");
    expect((await deploy("?memory=512", "PUT")).json().memoryMb).toBe(512);
  });

  it.each([
    ["?memroy=256", /unknown: memroy/],
    ["?memory=lots", /memory: it must be a whole number/],
    ["?timeout=soon", /timeout: it must be a number of seconds/],
    ["?env=A", /env: it must be NAME=VALUE/],
    ["?memory=1&memory=2", /memory:/],
  ])("refuses the query %s", async (query, why) => {
    const reply = await deploy(query);
    expect(reply.statusCode).toBe(400);
    expect(reply.json().error).toMatchObject({ code: "INVALID_ARGUMENT", what: "The query cannot be used" });
    expect(reply.json().error.why).toMatch(why);
  });

  it("refuses a body that is no zip", async () => {
    const reply = await app.inject({ method: "POST", url: "/thaw/v1/functions/hello", payload: "hello" });
    expect(reply.statusCode).toBe(400);
    expect(reply.json().error.code).toBe("CODE_INVALID");
  });

  it("waits for the image", async () => {
    await deploy();
    const reply = await app.inject("/thaw/v1/functions/hello/ready?timeout=5");
    expect(reply.json()).toMatchObject({ state: "ready", image: { generation: 0, bytesOnDisk: 4096 } });
    expect((await app.inject("/thaw/v1/functions/hello/image")).json().state).toBe("ready");
  });
});

describe("list, get and delete", () => {
  it("show how the last request was started", async () => {
    await deploy();
    await app.inject("/thaw/v1/functions/hello/ready");
    expect((await app.inject("/thaw/v1/functions/hello")).json()).not.toHaveProperty("lastStart");
    await app.inject({ method: "POST", url: "/2015-03-31/functions/hello/invocations" });
    const { functions } = (await app.inject("/thaw/v1/functions")).json();
    expect(functions).toHaveLength(1);
    expect(functions[0]).toMatchObject({ name: "hello", lastStart: { kind: "thaw", us: 1800, loader: "splice", generation: 0 } });
  });

  it("forget a function that was deleted", async () => {
    await deploy();
    expect((await app.inject({ method: "DELETE", url: "/thaw/v1/functions/hello" })).statusCode).toBe(204);
    expect((await app.inject("/thaw/v1/functions")).json()).toEqual({ functions: [] });
    expect((await app.inject("/thaw/v1/functions/hello")).statusCode).toBe(404);
  });

  it.each([
    ["GET", "/thaw/v1/functions/nobody"],
    ["DELETE", "/thaw/v1/functions/nobody"],
    ["GET", "/thaw/v1/functions/nobody/image"],
    ["GET", "/thaw/v1/functions/nobody/ready"],
    ["GET", "/thaw/v1/functions/nobody/logs"],
    ["GET", "/thaw/v1/functions/nobody/logs?follow=1"],
  ] as const)("%s %s is a 404 that names the function", async (method, url) => {
    const reply = await app.inject({ method, url });
    expect(reply.statusCode).toBe(404);
    expect(reply.json().error.code).toBe("FUNCTION_NOT_FOUND");
    expect(reply.json().error.what).toContain("nobody");
  });
});

describe("logs", () => {
  it("are the text that requests left", async () => {
    await deploy();
    test.engine.handler = (_event, context) => context.log("one line\n");
    await app.inject({ method: "POST", url: "/2015-03-31/functions/hello/invocations" });
    const reply = await app.inject("/thaw/v1/functions/hello/logs");
    expect(reply.headers["content-type"]).toContain("text/plain");
    expect(reply.body).toMatch(/START RequestId: .*\none line\n.*END RequestId: .*\nREPORT /s);
  });

  it("refuse a query that makes no sense", async () => {
    await deploy();
    expect((await app.inject("/thaw/v1/functions/hello/logs?follow=yes")).json().error.why).toMatch(/^follow:/);
  });
});

describe("the server's own state", () => {
  it("names version, runtimes and whether it freezes", async () => {
    expect((await app.inject("/thaw/v1/server")).json()).toMatchObject({
      version: expect.stringMatching(/^\d+\.\d+\.\d+/),
      pid: process.pid,
      canFreeze: true,
      runtimes: [{ id: "nodejs20.x" }, { id: "python3.11" }],
    });
    expect((await app.inject("/thaw/v1/health")).json()).toEqual({ status: "ok" });
  });

  it("counts", async () => {
    await deploy();
    await app.inject("/thaw/v1/functions/hello/ready");
    await app.inject({ method: "POST", url: "/2015-03-31/functions/hello/invocations" });
    const metrics = (await app.inject("/thaw/v1/metrics")).json();
    expect(metrics).toMatchObject({ invocations: 1, starts: { thaw: 1 }, engine: { instances: 1 } });
  });
});

describe("instances", () => {
  const invoke = (prefer?: string) =>
    app.inject({
      method: "POST",
      url: "/2015-03-31/functions/hello/invocations",
      payload: "{}",
      headers: prefer === undefined ? {} : { "x-thaw-prefer": prefer },
    });
  const byHand = (what: string, name = "hello") => app.inject({ method: "POST", url: `/thaw/v1/functions/${name}/${what}` });
  beforeEach(async () => {
    await deploy();
    await test.platform.waitReady("hello");
  });

  it("are listed by state, with their memory", async () => {
    await invoke();
    const instances = async () => (await app.inject("/thaw/v1/functions")).json().functions[0].instances;
    expect(await instances()).toEqual([{ id: expect.any(Number), state: "warm", residentBytes: 1_228_800, hibernatedBytes: 0 }]);
    await byHand("hibernate");
    expect(await instances()).toEqual([
      { id: expect.any(Number), state: "hibernated", residentBytes: 61_440, hibernatedBytes: 300 * 4096 },
    ]);
    expect((await app.inject("/thaw/v1/functions/hello")).json()).toMatchObject({ counts: { idle: 0, hibernated: 1 } });
  });

  it("are hibernated and woken, and a demanded wake says so in its header", async () => {
    await invoke();
    const report = await byHand("hibernate");
    expect(report.statusCode).toBe(200);
    expect(report.json()).toEqual({
      name: "hello",
      instances: 1,
      skipped: 0,
      residentBytes: 61_440 - 1_228_800,
      hibernatedBytes: 300 * 4096,
    });
    expect((await invoke("wake")).headers["x-thaw-start"]).toBe("kind=wake;generation=0;heat=0;us=900");
    const metrics = (await app.inject("/thaw/v1/metrics")).json();
    expect(metrics).toMatchObject({ hibernations: 1, wakes: 1, starts: { wake: 1 }, memory: { hibernatedBytes: 300 * 4096 } });
  });

  it.each([
    ["wake", "hello", 409, "NO_INSTANCE"],
    ["hibernate", "hello", 409, "NO_INSTANCE"],
    ["wake", "nobody", 404, "FUNCTION_NOT_FOUND"],
    ["hibernate", "nobody", 404, "FUNCTION_NOT_FOUND"],
  ])("%s of %s, where there is none, is a %i with its reason", async (what, name, status, code) => {
    const reply = await byHand(what, name);
    expect(reply.statusCode).toBe(status);
    expect(reply.json().error).toMatchObject({
      code,
      what: expect.any(String),
      why: expect.any(String),
      fix: expect.any(String),
    });
  });

  it("refuse a wake that is demanded where none is hibernated", async () => {
    const reply = await invoke("wake");
    expect(reply.statusCode).toBe(409);
    expect(JSON.parse(String(reply.headers["x-thaw-error"]))).toMatchObject({
      code: "PREFERENCE_UNAVAILABLE",
      why: "it has no hibernated instance",
    });
  });
});
