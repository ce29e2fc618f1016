import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import Database from "libsql";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { isThawError } from "../base/errors.js";
import { Store, type StoredVersion } from "./store.js";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "thaw-store-"));
});
afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

const version = (functionName: string, revisionId = "r1"): StoredVersion => ({
  functionName,
  version: "$LATEST",
  revisionId,
  modifiedMs: 1_700_000_000_000,
  config: {
    runtime: "nodejs20.x",
    handler: "index.handler",
    memoryMb: 128,
    timeoutMs: 3_000,
    env: { A: "1" },
    tmpMb: 512,
    description: "",
  },
  codeHex: "ab".repeat(32),
  codeBytes: 10,
});

describe("a database is refused", () => {
  it("when it is another file", async () => {
    await writeFile(join(dir, "thaw.db"), "this is not a database, and it is long enough to be sure of that".repeat(20));
    try {
      Store.open(dir);
      expect.unreachable();
    } catch (error) {
      expect(isThawError(error, "DATABASE_FAILED")).toBe(true);
      expect((error as Error).message).toBe(
        `The database ${join(dir, "thaw.db")} could not be opened. file is not a database. ` +
          "Restore it from a backup, or start with another data directory",
      );
    }
  });

  it("when a newer thaw wrote it", () => {
    Store.open(dir).close();
    const database = new Database(join(dir, "thaw.db"));
    database.pragma("user_version = 99");
    database.close();
    expect(() => Store.open(dir)).toThrow(
      "its schema has version 99, and this thaw knows versions up to 2. Use the newer thaw that wrote it, or another data directory",
    );
  });
});

describe("the database", () => {
  it("gives back what was put, with its image, after it was opened again", () => {
    const store = Store.open(dir);
    store.put(version("b"));
    store.put(version("a"));
    expect(store.putImage(version("a"), { state: "ready", dir: "a.0" })).toBe(true);
    store.close();
    const again = Store.open(dir);
    expect(again.all()).toEqual([
      { version: version("a"), image: { state: "ready", reason: undefined, dir: "a.0" } },
      { version: version("b"), image: { state: "pending", reason: undefined, dir: undefined } },
    ]);
    again.close();
  });

  it("forgets the image when a version is replaced, and does not take the image of the one before", () => {
    const store = Store.open(dir);
    store.put(version("a"));
    store.putImage(version("a"), { state: "ready", dir: "a.0" });
    store.put(version("a", "r2"));
    expect(store.all()[0]?.image).toEqual({ state: "pending" });
    expect(store.putImage(version("a", "r1"), { state: "ready", dir: "a.1" })).toBe(false);
    expect(store.all()[0]?.image.dir).toBeUndefined();
    store.close();
  });

  it("forgets all of a function that was removed", () => {
    const store = Store.open(dir);
    store.put(version("a"));
    store.remove("a");
    store.remove("a");
    expect(store.all()).toEqual([]);
    store.close();
  });

  it("is readable by the server alone, because environments hold secrets", async () => {
    Store.open(dir).close();
    expect((await stat(join(dir, "thaw.db"))).mode & 0o777).toBe(0o600);
  });
});
