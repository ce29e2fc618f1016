import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { makeDataDir } from "./data-dir.js";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "thaw-data-dir-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

describe("a data directory", () => {
  it("is made with all that is above it, and is the server's alone; one that exists is taken", () => {
    makeDataDir(join(dir, "a/b"));
    makeDataDir(join(dir, "a/b"));
    expect(statSync(join(dir, "a/b/images")).mode & 0o777).toBe(0o700);
  });

  it.each([
    ["file", /data directory .*file cannot be used\. A file is in its place or above it\. Choose a directory with --data/],
    ["file/below", /data directory .*below cannot be used\. A file is in its place or above it/],
    ["/proc/nowhere/data", /data directory \/proc\/nowhere\/data cannot be used\. It cannot be made: ENOENT/],
  ])("%s is refused with the reason", (path, sentence) => {
    writeFileSync(join(dir, "file"), "");
    expect(() => makeDataDir(path.startsWith("/") ? path : join(dir, path))).toThrow(sentence);
  });
});
