import { tmpdir } from "node:os";
import { describe, expect, it } from "vitest";
import { checkBody, checkFreeze, checkHusks, checkSpec, checkThaw, PAYLOAD_BYTES_MAX } from "./check-arguments.js";
import type { FunctionSpec, Loader } from "./types.js";

const spec: FunctionSpec = {
  name: "f",
  version: "1",
  runtime: "nodejs20.x",
  codeDir: "/srv/code",
  handler: "index.handler",
  memoryMb: 128,
  timeoutMs: 3_000,
  env: {},
  tmpMb: 512,
};

describe("a function", () => {
  it("that can be is taken", () => {
    checkSpec(spec);
  });

  it.each([
    [{ memoryMb: -1 }, "memoryMb: -1 is not above 0"],
    [{ tmpMb: 0 }, "tmpMb: 0 is not above 0"],
    [{ timeoutMs: 3e9 }, "timeoutMs: 3000000000 is not above 0 and at most 2147483647"],
    [{ codeDir: "" }, 'codeDir: "" is no absolute path'],
    [{ codeDir: "./code" }, 'codeDir: "./code" is no absolute path'],
    [{ handler: 7 as unknown as string }, "handler: "],
  ])("that cannot is refused by the member that is wrong (%j)", (wrong, why) => {
    expect(() => checkSpec({ ...spec, ...wrong })).toThrow(why);
  });
});

it("unknown loaders and husks are refused, not taken for others", () => {
  expect(checkThaw({ loader: "lazy", husk: "fresh" })).toBeUndefined();
  expect(checkThaw({})).toBeUndefined();
  expect(checkThaw({ loader: "nonsense" as Loader })?.message).toContain('the loader "nonsense" is unknown');
  expect(checkThaw({ husk: "nonsense" as "fresh" })?.message).toContain('the husk "nonsense" is unknown');
});

it("an image goes to a directory that is not there, by its whole path", () => {
  checkFreeze({});
  checkFreeze({ dir: "/srv/not-there/image" });
  expect(() => checkFreeze({ dir: "image" })).toThrow("it is no absolute path");
  expect(() => checkFreeze({ dir: tmpdir() })).toThrow("it is there already");
});

it("husks are kept in whole numbers, of levels that there are", () => {
  for (const count of [0, 1, 100_000]) checkHusks("runtime", count);
  for (const count of [-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY])
    expect(() => checkHusks("image", count)).toThrow("cannot be kept");
  expect(() => checkHusks("nonsense", 1)).toThrow('the level "nonsense" is unknown');
});

it("a payload is text or bytes, and no more than can be sent", () => {
  for (const payload of ["", "{}", Buffer.from("{}"), new Uint8Array(2)]) expect(checkBody(payload)).toBeUndefined();
  expect(checkBody({ name: "world" })?.message).toContain("it is of the type object");
  expect(checkBody(null)?.message).toContain("it is null");
  expect(checkBody(new Uint8Array(PAYLOAD_BYTES_MAX + 1))?.message).toContain("it has 134217729 bytes");
});
