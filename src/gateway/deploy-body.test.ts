import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { WarmUp } from "../platform/types.js";
import { Uploads } from "../platform/uploads.js";
import { readDeployBody, WARM_UP_BYTES_MAX } from "./deploy-body.js";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "thaw-body-"));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const ZIP = Buffer.from("PK\r\n--not really a zip\0\xff", "latin1");

/** A body as a browser or the CLI makes it. */
async function form(parts: readonly (readonly [string, string | Buffer])[]): Promise<[string, Buffer]> {
  const data = new FormData();
  for (const [name, value] of parts) data.append(name, typeof value === "string" ? value : new Blob([new Uint8Array(value)]));
  const response = new Response(data);
  return [response.headers.get("content-type") ?? "", Buffer.from(await response.arrayBuffer())];
}

/** Reads `body`, which comes in pieces of `pieceBytes`, and the package that is found in it. */
async function read(type: string | undefined, body: Buffer, pieceBytes = 64): Promise<{ zip: Buffer; warmUp?: WarmUp }> {
  async function* pieces(): AsyncGenerator<Buffer> {
    for (let at = 0; at < body.length; at += pieceBytes) yield body.subarray(at, at + pieceBytes);
  }
  const uploads = new Uploads(dir);
  const { zip, ...rest } = await readDeployBody(type, pieces(), (source) => uploads.receive(source));
  const bytes = await zip.read(0, zip.bytes);
  await zip.close();
  return { zip: bytes, ...rest };
}

describe("the body of a deploy", () => {
  it.each(["application/zip", "application/octet-stream", undefined])("of type %s is the zip, byte for byte", async (type) => {
    expect(await read(type, ZIP)).toEqual({ zip: ZIP });
  });

  it("may be missing: then the package is empty, for the platform to refuse", async () => {
    expect((await read(undefined, Buffer.alloc(0))).zip).toHaveLength(0);
  });

  it("is a form with the zip and the warm-up events, both as they were sent", async () => {
    const events = [{ text: "Grüße\r\n--" }, 1, null];
    for (const warmUp of [{ events }, { events, requests: 500 }]) {
      const body = await form([
        ["code", ZIP],
        ["warmUp", JSON.stringify(warmUp)],
      ]);
      expect(await read(...body)).toEqual({ zip: ZIP, warmUp });
    }
    const list = await form([
      ["warmUp", Buffer.from(JSON.stringify(events))],
      ["code", ZIP],
    ]);
    expect(await read(...list)).toEqual({ zip: ZIP, warmUp: { events } });
    expect(await read(...(await form([["code", ZIP]])))).toEqual({ zip: ZIP });
  });

  it("is the same in whatever pieces it comes, and with what forms have around their parts", async () => {
    const [type, body] = await form([
      ["code", ZIP],
      ["warmUp", "[1]"],
    ]);
    for (let pieceBytes = 1; pieceBytes <= body.length; pieceBytes++)
      expect(await read(type, body, pieceBytes), `${pieceBytes} at once`).toEqual({ zip: ZIP, warmUp: { events: [1] } });
    const around = Buffer.concat([Buffer.from("for who reads no forms\r\n"), body, Buffer.from("and an end")]);
    expect((await read(type, around)).zip).toEqual(ZIP);
    expect((await read(type, body.subarray(0, body.lastIndexOf("--") + 2))).zip).toEqual(ZIP);
    expect((await read(type.replace(/boundary=(.*)$/, 'charset=utf-8; boundary="$1"'), body)).zip).toEqual(ZIP);
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
      /they have more than 1 MiB, which is the limit\. Give a JSON list/,
    ],
  ] as [[string, string | Buffer][], RegExp][])("is refused with the parts of case %#", async (parts, sentence) => {
    const body = await form(parts);
    const refused = read(...body);
    await expect(refused).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    await expect(refused).rejects.toThrow(sentence);
  });

  it("is refused when the form is cut at any part of it", async () => {
    const [type, body] = await form([
      ["code", ZIP],
      ["warmUp", "[1]"],
    ]);
    for (const at of [0, 10, 60, 150, body.length - 150, body.length - 10]) {
      await expect(read(type, body.subarray(0, at)), `cut at ${at}`).rejects.toMatchObject({
        code: "INVALID_ARGUMENT",
      });
    }
    await expect(read("multipart/form-data", body)).rejects.toThrow(/The form cannot be used/);
  });
});
