import type { FastifyInstance } from "fastify";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DEPLOY_BYTES_MAX } from "./deploy-body.js";
import { openTestGateway, type TestPlatform, testZip } from "./testing.js";

let test: TestPlatform;
let app: FastifyInstance;

beforeEach(async () => {
  ({ app, ...test } = await openTestGateway());
});
afterEach(() => test.close());

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
    ["?memory=1&memory=2", /^memory: it is given more than once$/],
    ["?learn=1&learn=1", /^learn: it is given more than once$/],
  ])("refuses the query %s", async (query, why) => {
    const reply = await deploy(query);
    expect(reply.statusCode).toBe(400);
    expect(reply.json().error).toMatchObject({ code: "INVALID_ARGUMENT", what: "The query cannot be used" });
    expect(reply.json().error.why).toMatch(why);
  });

  it("takes warm-up events in a form beside the zip, and replays them", async () => {
    const seen: unknown[] = [];
    test.engine.handler = (event) => seen.push(event);
    const form = new FormData();
    form.set("code", new Blob([new Uint8Array(testZip())]));
    form.set("warmUp", JSON.stringify({ events: ["a", { b: 1 }], requests: 3 }));
    const body = new Response(form);
    const reply = await app.inject({
      method: "POST",
      url: "/thaw/v1/functions/hello?learn=1",
      payload: Buffer.from(await body.clone().arrayBuffer()),
      headers: { "content-type": body.headers.get("content-type") ?? "" },
    });
    expect(reply.statusCode).toBe(201);
    // The events themselves are not listed: they may be large.
    expect(reply.json()).toMatchObject({
      learn: true,
      warmUp: { eventCount: 2, requests: 3 },
      image: { heat: { state: "running" } },
    });
    expect(reply.json().warmUp).not.toHaveProperty("events");
    const heat = async () => (await app.inject("/thaw/v1/functions/hello")).json().image.heat;
    while ((await heat()).warmUp === "running") await new Promise((done) => setImmediate(done));
    // Learning goes on when the events are over.
    expect(await heat()).toEqual({ state: "running", warmUp: "done" });
    expect(seen).toEqual(["a", { b: 1 }, "a"]);
    expect((await app.inject("/thaw/v1/functions")).json().functions[0].image.image).toMatchObject({ heat: 3 });
  });

  it.each([
    ["?learn=yes", /learn: it must be 0 or 1/],
    ["?learn=1&learn=0", /learn:/],
  ])("refuses the query %s", async (query, why) => {
    expect((await deploy(query)).json().error.why).toMatch(why);
  });

  it("learns from nothing unless told", async () => {
    expect((await deploy("?learn=0")).json().image).not.toHaveProperty("heat");
    expect((await deploy("", "PUT")).json()).not.toHaveProperty("learn");
  });

  it("refuses a body that is larger than a package and its events may be", async () => {
    const reply = await app.inject({
      method: "POST",
      url: "/thaw/v1/functions/hello",
      headers: { "content-length": String(DEPLOY_BYTES_MAX + 1) },
      payload: "the rest is never read",
    });
    expect(reply.statusCode).toBe(413);
    expect(reply.json().error).toMatchObject({
      code: "PAYLOAD_TOO_LARGE",
      what: "The code package is too large",
      why: "Packed it has more than 300 MiB, and unpacked it may have 250 MiB",
    });
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
    ["GET", "/thaw/v1/functions/nobody/images"],
    ["POST", "/thaw/v1/functions/nobody/heat?requests=1"],
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

describe("images by heat", () => {
  const heat = (query: string, payload?: string) =>
    app.inject({ method: "POST", url: `/thaw/v1/functions/hello/heat${query}`, ...(payload === undefined ? {} : { payload }) });
  const images = async () => (await app.inject("/thaw/v1/functions/hello/images")).json();
  const invoke = (prefer: string) =>
    app.inject({ method: "POST", url: "/2015-03-31/functions/hello/invocations", headers: { "x-thaw-prefer": prefer } });

  it("are none until the first is made, and then one of generation 0", async () => {
    test.engine.delayMs.freeze = 20;
    await deploy();
    expect(await images()).toEqual([]);
    expect((await heat("?requests=1")).json().error).toMatchObject({ code: "IMAGE_NOT_READY" });
    await test.platform.waitReady("hello");
    expect(await images()).toEqual([
      {
        generation: 0,
        heat: 0,
        bytes: 4096,
        id: "fake-1",
        createdMs: expect.any(Number),
        source: "deploy",
        chosen: true,
        code: { functions: 3, tiers: { interpreted: 3 } },
      },
    ]);
  });

  it("are made by hand, from the hottest or from a given one, and demanded by generation", async () => {
    await deploy();
    await test.platform.waitReady("hello");
    const seen: unknown[] = [];
    test.engine.handler = (event) => seen.push(event);
    const made = await heat("?requests=3", '{"n":1}');
    expect(made.statusCode).toBe(200);
    expect(made.json()).toEqual({
      image: { ...(await images())[1], generation: 1, heat: 3, source: "by-hand", chosen: true },
      requests: 3,
      firstMs: expect.any(Number),
      lastMs: expect.any(Number),
    });
    expect(seen).toEqual([{ n: 1 }, { n: 1 }, { n: 1 }]);
    expect((await heat("?requests=2")).json().image).toMatchObject({ generation: 2, heat: 5 });
    expect((await heat("?requests=2&from=0")).json().image).toMatchObject({ generation: 3, heat: 2 });
    expect((await images()).map((image: { heat: number }) => image.heat)).toEqual([0, 2, 3, 5]);
    for (const generation of [0, 1, 2, 3]) {
      const reply = await invoke(`thaw;generation=${generation};dispose`);
      expect(reply.headers["x-thaw-start"]).toMatch(new RegExp(`^kind=thaw;.*generation=${generation};`));
    }
    expect((await app.inject("/thaw/v1/metrics")).json()).toMatchObject({ freezes: 1, heatFreezes: 3, heatFailures: 0 });
  });

  it("are refused where there is none of that generation, in words that say which there are", async () => {
    await deploy();
    await test.platform.waitReady("hello");
    expect((await heat("?requests=1&from=7")).json().error).toMatchObject({
      code: "INVALID_ARGUMENT",
      why: "it has no image of generation 7; those that exist are 0",
    });
    const reply = await invoke("thaw;generation=7");
    expect(reply.statusCode).toBe(409);
    expect(JSON.parse(String(reply.headers["x-thaw-error"]))).toMatchObject({
      code: "PREFERENCE_UNAVAILABLE",
      why: "it has no such image: generation 0 alone exists",
    });
    for (const wrong of ["thaw;generation=x", "boot;generation=0"]) expect((await invoke(wrong)).statusCode).toBe(400);
  });

  it.each([
    ["", undefined, "INVALID_ARGUMENT", /requests: it must be given/],
    ["?requests=many", undefined, "INVALID_ARGUMENT", /requests: it must be a whole number/],
    ["?requests=0", undefined, "INVALID_ARGUMENT", /the number of requests is 0/],
    ["?requests=1&from=-1", undefined, "INVALID_ARGUMENT", /from: it must be a whole number/],
    ["?requests=1&form=1", undefined, "INVALID_ARGUMENT", /unknown: form/],
    ["?requests=1", "{nope", "INVALID_PAYLOAD", /JSON/],
  ])("are not made with %j and %j", async (query, payload, code, why) => {
    await deploy();
    await test.platform.waitReady("hello");
    const reply = await heat(query, payload);
    expect(reply.statusCode).toBe(400);
    expect(reply.json().error).toMatchObject({ code, why: expect.stringMatching(why) });
    expect(await images()).toHaveLength(1);
  });

  it("are not made of a function that fails: the reply names the request", async () => {
    await deploy();
    await test.platform.waitReady("hello");
    let served = 0;
    test.engine.handler = () => {
      if (++served === 2) throw new RangeError("too far");
    };
    const reply = await heat("?requests=5");
    expect(reply.statusCode).toBe(409);
    expect(reply.json().error).toMatchObject({
      code: "WARM_UP_FAILED",
      why: expect.stringMatching(/^request 2 failed: .*too far/),
    });
    expect(await images()).toHaveLength(1);
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
