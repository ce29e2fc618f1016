import { describe, expect, it } from "vitest";
import { LIMITS } from "../platform/types.js";
import { DEPLOY_BYTES_MAX, readDeployBody, WARM_UP_BYTES_MAX } from "./deploy-body.js";

const ZIP = Buffer.from("PK\r\n--not really a zip\0\xff", "latin1");

/** A body as a browser or the CLI makes it. */
async function form(parts: readonly (readonly [string, string | Buffer])[]): Promise<[string, Buffer]> {
  const data = new FormData();
  for (const [name, value] of parts) data.append(name, typeof value === "string" ? value : new Blob([new Uint8Array(value)]));
  const response = new Response(data);
  return [response.headers.get("content-type") ?? "", Buffer.from(await response.arrayBuffer())];
}

describe("the body of a deploy", () => {
  it.each(["application/zip", "application/octet-stream", undefined])("of type %s is the zip, byte for byte", async (type) => {
    expect(await readDeployBody(type, ZIP)).toEqual({ zip: ZIP });
  });

  it("may be missing: then the package is empty, for the platform to refuse", async () => {
    expect((await readDeployBody(undefined, undefined)).zip).toHaveLength(0);
  });

  it("is a form with the zip and the warm-up events, both as they were sent", async () => {
    const events = [{ text: "Grüße\r\n--" }, 1, null];
    for (const warmUp of [{ events }, { events, requests: 500 }]) {
      const body = await form([
        ["code", ZIP],
        ["warmUp", JSON.stringify(warmUp)],
      ]);
      expect(await readDeployBody(...body)).toEqual({ zip: ZIP, warmUp });
    }
    const list = await form([
      ["warmUp", Buffer.from(JSON.stringify(events))],
      ["code", ZIP],
    ]);
    expect(await readDeployBody(...list)).toEqual({ zip: ZIP, warmUp: { events } });
    expect(await readDeployBody(...(await form([["code", ZIP]])))).toEqual({ zip: ZIP });
  });

  it("may be a full package with as many events as allowed", async () => {
    const parts = [
      ["code", Buffer.alloc(LIMITS.packedBytes)],
      ["warmUp", JSON.stringify(["x".repeat(WARM_UP_BYTES_MAX - 4)])],
    ] as const;
    const [type, body] = await form(parts);
    expect(body.length).toBeLessThanOrEqual(DEPLOY_BYTES_MAX);
    expect((await readDeployBody(type, body)).zip).toHaveLength(LIMITS.packedBytes);
  });

  it.each([
    [[["code", "text"]], /The form cannot be used\. it has no file `code`/],
    [[["warmUp", "[1]"]], /it has no file `code`/],
    [
      [
        ["code", ZIP],
        ["code", ZIP],
      ],
      /it has more than one part `code`/,
    ],
    [
      [
        ["code", ZIP],
        ["warmUp", "[1]"],
        ["warmUp", "[2]"],
      ],
      /it has more than one part `warmUp`/,
    ],
    [
      [
        ["code", ZIP],
        ["warmup", "[1]"],
      ],
      /it has a part "warmup"\. Send the zip as the body, or multipart/,
    ],
    [
      [
        ["code", ZIP],
        ["warmUp", "{nope"],
      ],
      /The warm-up events cannot be used\. they are not JSON: /,
    ],
    [
      [
        ["code", ZIP],
        ["warmUp", "7"],
      ],
      /The warm-up events cannot be used\. warmUp: /,
    ],
    [
      [
        ["code", ZIP],
        ["warmUp", '{"events": 1}'],
      ],
      /events: /,
    ],
    [
      [
        ["code", ZIP],
        ["warmUp", '{"events": [1], "requests": "many"}'],
      ],
      /requests: /,
    ],
    [
      [
        ["code", ZIP],
        ["warmUp", '{"events": [1], "script": "x"}'],
      ],
      /script/,
    ],
    [
      [
        ["code", ZIP],
        ["warmUp", JSON.stringify(["x".repeat(WARM_UP_BYTES_MAX)])],
      ],
      /they have 1 MiB, and the limit is 1 MiB\. Give a JSON list/,
    ],
  ] as [[string, string | Buffer][], RegExp][])("is refused with the parts of case %#", async (parts, sentence) => {
    const body = await form(parts);
    const refused = readDeployBody(...body);
    await expect(refused).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    await expect(refused).rejects.toThrow(sentence);
  });

  it("is refused when the form is cut at any part of it", async () => {
    const [type, body] = await form([
      ["code", ZIP],
      ["warmUp", "[1]"],
    ]);
    for (const at of [0, 10, 60, 150, body.length - 150, body.length - 10]) {
      await expect(readDeployBody(type, body.subarray(0, at)), `cut at ${at}`).rejects.toMatchObject({
        code: "INVALID_ARGUMENT",
      });
    }
    await expect(readDeployBody("multipart/form-data", body)).rejects.toThrow(/The form cannot be used/);
  });
});
