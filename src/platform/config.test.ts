import { describe, expect, it } from "vitest";
import { isThawError } from "../base/errors.js";
import { RESERVED_ENVIRONMENT } from "../runtime/launch.js";
import { checkConfig } from "./config.js";
import type { DeployRequest } from "./types.js";

const zip = new Uint8Array();
const check = (request: Partial<DeployRequest>) => checkConfig({ name: "hello", zip, ...request });

describe("a configuration is refused", () => {
  const refusals: [string, Partial<DeployRequest>, string][] = [
    ["with a name that is a path", { name: "../x" }, "a name has 1 to 64 letters, digits, hyphens and underscores"],
    ["with an empty name", { name: "" }, "a name has 1 to 64 letters"],
    ["with a long name", { name: "n".repeat(65) }, "a name has 1 to 64 letters"],
    ["with little memory", { memoryMb: 64 }, "the memory is 64, and it must be a whole number from 128 to 10240 MB"],
    ["with broken memory", { memoryMb: 128.5 }, "the memory is 128.5, and it must be a whole number"],
    ["with memory that is text", { memoryMb: "128" as unknown as number }, "the memory is not a number"],
    [
      "with a long timeout",
      { timeoutMs: 900_001 },
      "the timeout is 900.001 s, and it must be from 1 to 900 s, in whole milliseconds",
    ],
    ["with a short timeout", { timeoutMs: 0 }, "the timeout is 0 s, and it must be"],
    ["with a timeout between two milliseconds", { timeoutMs: 1000.5 }, "the timeout is 1.0005 s, and it must be"],
    ["with a large /tmp", { tmpMb: 20_000 }, "the size of /tmp is 20000, and it must be a whole number from 512 to 10240 MB"],
    ["with no instances", { maxInstances: 0 }, "the limit on instances is 0, and it must be a whole number from 1 to 10000"],
    ["with a handler without export", { handler: "index" }, "a handler has the form FILE.EXPORT, such as index.handler"],
    ["with a handler that climbs", { handler: "../x.handler" }, "a handler names a file inside the package"],
    ["with a reserved variable", { env: { AWS_REGION: "x" } }, "the environment variable AWS_REGION is set by the platform"],
    ["with a variable that is no name", { env: { "A-B": "x" } }, 'the environment variable "A-B" must begin with a letter'],
    [
      "with a variable that objects have of themselves",
      { env: JSON.parse('{"__proto__": "x"}') as Record<string, string> },
      'no variable can be called "__proto__"',
    ],
    ["with a NUL byte in a variable", { env: { AB: "a\0b" } }, "the environment variable AB contains a NUL byte"],
    ["with warm-up that is a list", { warmUp: [1] as never }, "warm-up is not an object with events"],
    ["with warm-up events that are no list", { warmUp: { events: "x" as never } }, "the warm-up events are not a list"],
    ["with warm-up without events", { warmUp: { events: [] } }, "warm-up has no events, and it takes at least one"],
    ["with too many warm-up events", { warmUp: { events: Array(1001).fill(0) } }, "warm-up has more than 1000 events"],
    [
      "with large warm-up events",
      { warmUp: { events: ["x".repeat(600_000), "y".repeat(600_000)] } },
      "the warm-up events have 1200004 bytes, and the limit is 1048576",
    ],
    ["with a warm-up event that is nothing", { warmUp: { events: [1, undefined] } }, "warm-up event 2 is not a JSON value"],
    [
      "with a warm-up event that JSON has no word for",
      { warmUp: { events: [Number.NaN] } },
      "warm-up event 1 is not a JSON value",
    ],
    [
      "with a warm-up event that loses a part",
      { warmUp: { events: [{ when: new Date(0) }] } },
      "warm-up event 1 is not a JSON value",
    ],
    [
      "with no warm-up requests",
      { warmUp: { events: [1], requests: 0 } },
      "the number of warm-up requests is 0, and it must be a whole number from 1 to 100000",
    ],
    [
      "with more warm-up requests than is allowed",
      { warmUp: { events: [1], requests: 100_001 } },
      "it must be a whole number from 1 to 100000",
    ],
    [
      "with an unknown setting of warm-up",
      { warmUp: { events: [1], times: 3 } as never },
      "warm-up has events and requests, and nothing else",
    ],
    ["with learning that is text", { learn: "yes" as never }, "whether to learn from traffic is not true or false"],
    ["with a large environment", { env: { AB: "x".repeat(4095) } }, "the environment has 4097 bytes, and the limit is 4096"],
  ];
  for (const [when, request, sentence] of refusals) {
    it(when, () => {
      try {
        check(request);
        expect.unreachable();
      } catch (error) {
        expect(isThawError(error, "INVALID_ARGUMENT")).toBe(true);
        expect((error as Error).message).toContain(sentence);
        expect((error as Error).message).toMatch(/^Function ".*" cannot be deployed\. /);
      }
    });
  }

  it("with every objection at once", () => {
    expect(() => check({ memoryMb: 1, timeoutMs: 1 })).toThrow(/the memory is 1.*; the timeout is 0\.001 s/);
  });
});

describe("a configuration", () => {
  it("gets Lambda's defaults", () => {
    expect(check({})).toEqual({ name: "hello", memoryMb: 128, timeoutMs: 3_000, env: {}, tmpMb: 512, description: "" });
  });

  it("takes what was given as undefined for not given", () => {
    expect(check({ memoryMb: undefined, handler: undefined }).memoryMb).toBe(128);
  });

  it("reserves every name that Lambda reserves", () => {
    for (const name of RESERVED_ENVIRONMENT) expect(() => check({ env: { [name]: "x" } })).toThrow("is set by the platform");
  });
});
