import type { FastifyInstance } from "fastify";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { createLogger } from "../base/log.js";
import { FakeEnd } from "../engine/fake.js";
import { buildGateway, RUN_IN_REQUESTS } from "./server.js";
import { openTestPlatform, type TestPlatform, testZip } from "./testing.js";

const URL = "/2015-03-31/functions/hello/invocations";
let test: TestPlatform;
let app: FastifyInstance;
let runIn: number;

beforeEach(async () => {
  test = await openTestPlatform();
  runIn = 0;
  app = buildGateway(test.platform, {
    onRunIn: () => {
      runIn += 1;
    },
  });
  await test.platform.deploy({ name: "hello", zip: testZip(), maxInstances: 1 });
  await test.platform.waitReady("hello");
});
afterEach(async () => {
  await app.close();
  await test.close();
});

const post = (payload: string | Buffer = "{}", headers: Record<string, string> = {}, url = URL) =>
  app.inject({ method: "POST", url, payload, headers });

describe("a successful invocation", () => {
  it("answers with the handler's JSON, the version, a request id and how it was started", async () => {
    const reply = await post('{"name":"world"}');
    expect(reply.statusCode).toBe(200);
    expect(reply.json()).toEqual({ event: { name: "world" }, function: "hello" });
    expect(reply.headers["content-type"]).toBe("application/json");
    expect(reply.headers["x-amz-executed-version"]).toBe("$LATEST");
    expect(reply.headers["x-amzn-requestid"]).toMatch(/^[0-9a-f]{8}-[0-9a-f-]{27}$/);
    expect(reply.headers["x-thaw-start"]).toBe("kind=thaw;loader=splice;generation=0;heat=0;us=1800");
    expect(reply.headers["server-timing"]).toMatch(/^total;dur=\d+\.\d{3}$/);
    expect(reply.headers).not.toHaveProperty("x-amz-function-error");
    expect(reply.headers).not.toHaveProperty("x-amz-log-result");
    expect(reply.headers).not.toHaveProperty("x-thaw-trace");
  });

  it("reuses the instance for the next request", async () => {
    await post();
    expect((await post()).headers["x-thaw-start"]).toMatch(/^kind=reuse;.*us=0$/);
  });

  it("is, as one of the first twenty, what a server is run in by; that is told once", async () => {
    for (let request = 1; request < RUN_IN_REQUESTS; request++) await post();
    expect(runIn).toBe(0);
    await post();
    expect(runIn).toBe(1);
    for (let request = 0; request < RUN_IN_REQUESTS; request++) await post();
    expect(runIn).toBe(1);
  });

  it("takes an empty body as {}", async () => {
    expect((await post("")).json().event).toEqual({});
  });

  it.each(["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", "", "json", "a/b; c=é"])(
    "does not care that the body is called %s",
    async (type) => {
      expect((await post("[1]", { "content-type": type })).json().event).toEqual([1]);
    },
  );

  it.each([
    "arn:aws:lambda:us-east-1:123456789012:function:hello",
    "123456789012%3Afunction%3Ahello",
    "hello:$LATEST",
    "hello%3A%24LATEST",
  ])("finds the function by %s", async (reference) => {
    expect((await post("{}", {}, `/2015-03-31/functions/${reference}/invocations`)).statusCode).toBe(200);
  });

  it("gives the handler the request id that the reply names", async () => {
    test.engine.handler = (_event, context) => context.requestId;
    const reply = await post();
    expect(reply.json()).toBe(reply.headers["x-amzn-requestid"]);
  });

  it("returns the log's tail when asked", async () => {
    test.engine.handler = (_event, context) => context.log("a line\n");
    const reply = await post("{}", { "x-amz-log-type": "Tail" });
    const log = Buffer.from(String(reply.headers["x-amz-log-result"]), "base64").toString();
    expect(log).toContain("a line\n");
    expect(log).toContain(`START RequestId: ${reply.headers["x-amzn-requestid"]}`);
  });

  it("returns phases, pages and memory when asked", async () => {
    const trace = JSON.parse(String((await post("{}", { "x-thaw-trace": "1" })).headers["x-thaw-trace"]));
    expect(trace.start).toMatchObject({ kind: "thaw", us: 1800, phases: [{ name: "map", us: 1800 }] });
    expect(trace.pages).toEqual({ written: 300, image: 2000, file: 1500, zero: 10 });
    expect(trace.memory).toEqual({ privateBytes: 1_228_800, dirtyBytes: 1_228_800, sharedBytes: 14_336_000, hibernatedBytes: 0 });
  });

  it("starts the demanded way, and ends the instance when told", async () => {
    const reply = await post("{}", { "x-thaw-prefer": "boot;dispose" });
    expect(reply.headers["x-thaw-start"]).toBe("kind=boot;us=90000");
    expect((await post("{}", { "x-thaw-prefer": "thaw;loader=lazy;dispose" })).headers["x-thaw-start"]).toContain(
      "kind=thaw;loader=lazy;",
    );
    expect((await post()).headers["x-thaw-start"]).toContain("kind=thaw;loader=splice");
  });
});

describe("a function's own error", () => {
  it("is a 200 with X-Amz-Function-Error", async () => {
    test.engine.handler = () => {
      throw new RangeError("too far");
    };
    const reply = await post();
    expect(reply.statusCode).toBe(200);
    expect(reply.headers["x-amz-function-error"]).toBe("Unhandled");
    expect(reply.headers).not.toHaveProperty("x-thaw-platform-error");
    expect(reply.json()).toMatchObject({ errorType: "RangeError", errorMessage: "too far" });
  });

  it("names what ended the instance", async () => {
    test.engine.handler = () => {
      throw new FakeEnd("OUT_OF_MEMORY");
    };
    const reply = await post();
    expect(reply.statusCode).toBe(200);
    expect(reply.headers["x-amz-function-error"]).toBe("Unhandled");
    expect(reply.headers["x-thaw-platform-error"]).toBe("OUT_OF_MEMORY");
  });
});

describe("DryRun", () => {
  it("is a 204 and runs nothing", async () => {
    const before = test.engine.calls.length;
    const reply = await post("{}", { "x-amz-invocation-type": "DryRun" });
    expect(reply.statusCode).toBe(204);
    expect(reply.body).toBe("");
    expect(test.engine.calls.length).toBe(before);
  });

  it.each([
    ["x-amz-log-type", "All"],
    ["x-thaw-prefer", "magic"],
    ["x-amz-client-context", "none"],
    ["x-amzn-trace-id", "a".repeat(62_000)],
  ])("refuses %s where the request itself would be refused", async (header, value) => {
    const replies = [
      await post("{}", { [header]: value }),
      await post("{}", { [header]: value, "x-amz-invocation-type": "DryRun" }),
    ];
    expect(replies.map(({ statusCode }) => statusCode)).toEqual([400, 400]);
    expect(replies[1]?.body).toBe(replies[0]?.body);
  });

  it("says when the function does not exist", async () => {
    expect((await post("{}", { "x-amz-invocation-type": "DryRun" }, URL.replace("hello", "nobody"))).statusCode).toBe(404);
  });
});

describe("a bad request", () => {
  it.each([
    ["not JSON", "{nope", {}, URL, 400, "InvalidRequestContentException", "message", /JSON/],
    ["to an unknown function", "{}", {}, URL.replace("hello", "nobody"), 404, "ResourceNotFoundException", "Message", /nobody/],
    ["of an unknown version", "{}", {}, `${URL}?Qualifier=7`, 404, "ResourceNotFoundException", "Message", /7/],
    [
      "with two qualifiers",
      "{}",
      {},
      `${URL}?Qualifier=7&Qualifier=8`,
      400,
      "InvalidParameterValueException",
      "message",
      /given twice/,
    ],
    [
      "with a name that is none",
      "{}",
      {},
      URL.replace("hello", "he%20llo"),
      400,
      "InvalidParameterValueException",
      "message",
      /cannot be read/,
    ],
    [
      "of type Event",
      "{}",
      { "x-amz-invocation-type": "Event" },
      URL,
      400,
      "InvalidParameterValueException",
      "message",
      /no queue yet\. Use RequestResponse$/,
    ],
    [
      "of an unknown type",
      "{}",
      { "x-amz-invocation-type": "Later" },
      URL,
      400,
      "InvalidParameterValueException",
      "message",
      /"Later" is unknown/,
    ],
    [
      "for an unknown kind of log",
      "{}",
      { "x-amz-log-type": "All" },
      URL,
      400,
      "InvalidParameterValueException",
      "message",
      /Use None or Tail/,
    ],
    [
      "for an unknown kind of trace",
      "{}",
      { "x-thaw-trace": "yes" },
      URL,
      400,
      "InvalidParameterValueException",
      "message",
      /Use 1/,
    ],
    [
      "for an unknown kind of start",
      "{}",
      { "x-thaw-prefer": "magic" },
      URL,
      400,
      "InvalidParameterValueException",
      "message",
      /boot, thaw, parked, reuse/,
    ],
    [
      "for an unknown loader",
      "{}",
      { "x-thaw-prefer": "thaw;loader=x" },
      URL,
      400,
      "InvalidParameterValueException",
      "message",
      /lazy, lazy-4k, eager, splice, reap/,
    ],
    [
      "with a client context that is not JSON",
      "{}",
      { "x-amz-client-context": "!!" },
      URL,
      400,
      "InvalidRequestContentException",
      "message",
      /base64/,
    ],
    ["that is compressed", "{}", { "content-encoding": "gzip" }, URL, 415, "UnsupportedMediaTypeException", "message", /gzip/],
    [
      "from a foreign page",
      "{}",
      { origin: "http://evil.example" },
      URL,
      403,
      "AccessDeniedException",
      "Message",
      /other origins/,
    ],
    [
      "to an unknown operation",
      "{}",
      {},
      "/2015-03-31/functions/hello/explode",
      404,
      "ResourceNotFoundException",
      "Message",
      /no operation POST/,
    ],
    [
      "to an unknown operation, with a body that none of them takes",
      "x".repeat(9_000_000),
      {},
      "/2015-03-31/functions",
      404,
      "ResourceNotFoundException",
      "Message",
      /no operation POST \/2015-03-31\/functions$/,
    ],
    [
      "to an address that is not in percent-encoding",
      "{}",
      {},
      "/2015-03-31/functions/%E0%A4%A/invocations",
      400,
      "InvalidParameterValueException",
      "message",
      /address cannot be read\. It is not UTF-8 in percent-encoding/,
    ],
    [
      "to a name without end",
      "{}",
      {},
      URL.replace("hello", "h".repeat(900)),
      400,
      "InvalidParameterValueException",
      "message",
      /address cannot be read\. The name in it has more than 768 characters/,
    ],
  ] as const)("%s", async (_name, payload, headers, url, status, exception, member, sentence) => {
    const reply = await post(payload, headers, url);
    expect(reply.statusCode).toBe(status);
    expect(reply.headers["x-amzn-errortype"]).toBe(exception);
    expect(reply.json().Type).toBe("User");
    expect(reply.json()[member]).toMatch(sentence);
    expect(reply.headers["content-type"]).toBe("application/json");
    expect(Object.keys(reply.json()).sort()).toEqual(["Type", member].sort());
    expect(reply.headers["x-amzn-requestid"]).toMatch(/^[0-9a-f-]{36}$/);
  });

  it("of more than 6 MB is a 413 that names the limit", async () => {
    const reply = await post(Buffer.alloc(6 * 1024 * 1024 + 1, " "));
    expect(reply.statusCode).toBe(413);
    expect(reply.headers["x-amzn-errortype"]).toBe("RequestTooLargeException");
    expect(reply.json().message).toContain("6 MiB");
    expect(reply.headers["x-amzn-requestid"]).toMatch(/^[0-9a-f-]{36}$/);
  });

  it("has our own code beside Lambda's shape", async () => {
    const reply = await post("{nope");
    expect(reply.headers["x-amzn-requestid"]).toMatch(/^[0-9a-f-]{36}$/);
    expect(JSON.parse(String(reply.headers["x-thaw-error"])).code).toBe("INVALID_PAYLOAD");
  });
});

describe("when no instance may be added", () => {
  it("is a 429 with Retry-After and Reason", async () => {
    let release = (): void => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    test.engine.handler = () => held;
    const first = post();
    await expect.poll(() => test.platform.get("hello").counts.running).toBe(1);
    const second = await post();
    release();
    await first;
    expect(second.statusCode).toBe(429);
    expect(second.headers["x-amzn-errortype"]).toBe("TooManyRequestsException");
    expect(second.headers["retry-after"]).toBe("1");
    expect(second.json()).toMatchObject({ Type: "User", Reason: "ReservedFunctionConcurrentInvocationLimitExceeded" });
  });
});

describe("when the server itself fails", () => {
  it("is a ServiceException", async () => {
    test.engine.failNext("invoke", new ThawError("KEEPER_FAILED", { what: "The keeper ended" }));
    const reply = await post();
    expect(reply.statusCode).toBe(500);
    expect(reply.json()).toEqual({ Type: "Service", Message: "The keeper ended" });
  });

  it("a demanded start that is not to be had is a clear refusal", async () => {
    const reply = await post("{}", { "x-thaw-prefer": "reuse" });
    expect(reply.statusCode).toBe(409);
    expect(JSON.parse(String(reply.headers["x-thaw-error"])).code).toBe("PREFERENCE_UNAVAILABLE");
  }, 10_000);

  it("reports a fallback in the reply that took it", async () => {
    test.engine.failNext("thaw", new ThawError("IMAGE_DAMAGED", { what: "The image is damaged", why: "bit 7 is wrong" }));
    const start = String((await post()).headers["x-thaw-start"]);
    expect(start).toMatch(/^kind=boot;us=90000;fallback=".*"$/);
    expect(start).toContain("bit 7 is wrong");
  });
});

it("tells the log of a failure inside the server, and not of a refusal because it stops", async () => {
  const lines: string[] = [];
  const log = createLogger({ level: "error", destination: { write: (line: string) => void lines.push(line) } });
  const logged = buildGateway(test.platform, { log });
  const invoke = () => logged.inject({ method: "POST", url: URL, payload: "{}" });
  test.engine.failNext("thaw", new ThawError("KEEPER_FAILED", { what: "the keeper has ended" }));
  expect((await invoke()).statusCode).toBe(500);
  expect(lines).toEqual([expect.stringContaining("request failed")]);
  await test.platform.close();
  const refused = await invoke();
  expect([refused.statusCode, JSON.parse(String(refused.headers["x-thaw-error"])).code]).toEqual([500, "SHUTTING_DOWN"]);
  expect(lines).toHaveLength(1);
  await logged.close();
});
