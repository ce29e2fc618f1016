import { existsSync, readlinkSync } from "node:fs";
import { type FileHandle, mkdtemp, open, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import Database from "libsql";
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { isThawError } from "../base/errors.js";
import { Store, type StoredImage, type StoredVersion } from "./store.js";

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

const REPORT = { hygieneMs: 1, stoppedMs: 2, totalMs: 5, anonymousBytes: 1, storedBytes: 4096, notes: [] };
const image = (dir: string, generation = 0): StoredImage => ({
  dir,
  generation,
  heat: generation * 10,
  source: generation === 0 ? "deploy" : "warm-up",
  createdMs: 1_700_000_000_001,
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

  it("when pages in the middle of it are damaged", async () => {
    const store = Store.open(dir);
    for (let count = 0; count < 100; count++) store.put(version(`f${count}`));
    await store.close();
    const path = join(dir, "thaw.db");
    const database = new Database(path);
    database.pragma("wal_checkpoint(TRUNCATE)");
    database.close();
    const bytes = await readFile(path);
    for (let page = 1; (page + 1) * 4096 <= bytes.length; page++) bytes.fill(0x5a, page * 4096 + 8, page * 4096 + 200);
    await writeFile(path, bytes);
    expect(() => Store.open(dir)).toThrow(
      /^The database .+ could not be opened\. it is damaged: .+\. Restore it from a backup, or start with another data directory$/,
    );
  });

  it.each([
    ["versions", "config", "{", "config"],
    ["versions", "config", "null", "config"],
    ["versions", "config", '{"runtime":"nodejs20.x"}', "config.handler, config.memoryMb"],
    ["versions", "code_hex", "../../b", "code_hex"],
    ["versions", "image_state", "rXady", "image_state"],
    ["images", "dir", "..", "dir"],
    ["images", "dir", "a/b", "dir"],
    ["images", "summary", "[1]", "summary"],
    ["images", "source", "X", "source"],
  ])("when a function's row makes no sense: %s.%s is %s", async (table, column, value, told) => {
    const store = Store.open(dir);
    store.put(version("a"));
    store.putImage(version("a"), image("a.0"));
    await store.close();
    const database = new Database(join(dir, "thaw.db"));
    database.prepare(`UPDATE ${table} SET ${column} = ?`).run(value);
    database.close();
    const again = Store.open(dir);
    onTestFinished(() => again.close());
    expect(() => again.all()).toThrow(
      `The functions could not be read from the database. the database is damaged: what it says of function "a" makes no sense (${told}`,
    );
  });

  it("when a newer thaw wrote it", async () => {
    await Store.open(dir).close();
    const database = new Database(join(dir, "thaw.db"));
    database.pragma("user_version = 99");
    database.close();
    expect(() => Store.open(dir)).toThrow(
      "its schema has version 99, and this thaw knows versions up to 5. Use the newer thaw that wrote it, or another data directory",
    );
  });
});

describe("the database", () => {
  it("is written to again when another program has let go of it", () => {
    const store = Store.open(dir);
    onTestFinished(() => store.close());
    store.put(version("a"));
    store.putImage(version("a"), image("a.0"));
    const other = new Database(join(dir, "thaw.db"));
    other.exec("BEGIN IMMEDIATE");
    const writes: Readonly<Record<string, () => unknown>> = {
      put: () => store.put(version("b")),
      putState: () => store.putState(version("a"), { state: "pending", reason: undefined, warmUp: undefined }),
      putImage: () => store.putImage(version("a"), image("a.1", 1)),
      putLearned: () => store.putLearned([{ version: version("a"), what: "heat", state: "{}" }]),
      removeImage: () => store.removeImage("a.0"),
      remove: () => store.remove("a"),
    };
    for (const [name, write] of Object.entries(writes))
      expect(write, name).toThrow("database is locked. Close the other program that has it open");
    other.exec("ROLLBACK");
    other.close();
    for (const [name, write] of Object.entries(writes)) expect(write, name).not.toThrow();
    expect(store.all().map(({ version: { functionName } }) => functionName)).toEqual(["b"]);
  });

  it("takes an image in the place of one that could not be forgotten while the disk was full", () => {
    const store = Store.open(dir);
    onTestFinished(() => store.close());
    store.put(version("a"));
    store.putImage(version("a"), image("a.lost"));
    expect(store.putImage(version("a"), image("a.anew"))).toBe(true);
    expect(store.all().flatMap(({ images }) => images.map((stored) => stored.dir))).toEqual(["a.anew"]);
  });

  describe("is flushed", () => {
    /** What is flushed from now on, by path, and how. */
    async function watchFlushes(flush = async (): Promise<void> => undefined): Promise<string[]> {
      const paths: string[] = [];
      const file = await open(join(dir, "any"), "w");
      const handles = Object.getPrototypeOf(file) as FileHandle;
      await file.close();
      const spy = vi.spyOn(handles, "datasync").mockImplementation(function (this: FileHandle) {
        paths.push(readlinkSync(`/proc/self/fd/${this.fd}`));
        return flush();
      });
      onTestFinished(() => spy.mockRestore());
      return paths;
    }

    it("with the log that its transactions are in", async () => {
      const store = Store.open(dir);
      onTestFinished(() => store.close());
      store.put(version("a"));
      const flushed = await watchFlushes();
      await store.flush();
      expect(flushed).toEqual([join(dir, "thaw.db-wal")]);
      expect((await stat(join(dir, "thaw.db-wal"))).size).toBeGreaterThan(4096);
    });

    it("also after its log could not be opened", async () => {
      const store = Store.open(dir);
      onTestFinished(() => store.close());
      store.put(version("a"));
      await rm(join(dir, "thaw.db-wal"));
      expect(isThawError(await store.flush().catch((caught: unknown) => caught), "DATABASE_FAILED")).toBe(true);
      await writeFile(join(dir, "thaw.db-wal"), "");
      await store.flush();
    });

    it("or says that the disk did not take it", async () => {
      const store = Store.open(dir);
      onTestFinished(() => store.close());
      store.put(version("a"));
      await watchFlushes(() => Promise.reject(Object.assign(new Error("EIO: i/o error, fdatasync"), { code: "EIO" })));
      const error = await store.flush().catch((caught: unknown) => caught);
      expect(isThawError(error, "DATABASE_FAILED")).toBe(true);
      expect(String(error)).toContain(
        "What was changed just now is in force, but the disk may not have it. EIO: i/o error, fdatasync. Check that the data directory can be written and its disk is healthy",
      );
    });
  });

  it("gives back what was put, with its images in order, after it was opened again", async () => {
    const store = Store.open(dir);
    store.put(version("b"));
    store.put(version("a"));
    expect(store.putImage(version("a"), image("a.0"))).toBe(true);
    const summary = {
      id: "i",
      bytesOnDisk: 4096,
      report: REPORT,
      code: { functions: 2, tiers: { interpreted: 1, optimised: 1 } },
    };
    expect(store.putImage(version("a"), { ...image("a.1", 1), summary }, { state: "running" })).toBe(true);
    await store.close();
    const again = Store.open(dir);
    expect(again.all()).toEqual([
      {
        version: version("a"),
        state: { state: "ready", reason: undefined, warmUp: { state: "running" } },
        images: [image("a.0"), { ...image("a.1", 1), summary }],
        learned: [],
      },
      { version: version("b"), state: { state: "pending", reason: undefined, warmUp: undefined }, images: [], learned: [] },
    ]);
    await again.close();
  });

  it("remembers how the warm-up ended, and forgets single images", async () => {
    const store = Store.open(dir);
    store.put(version("a"));
    store.putImage(version("a"), image("a.0"));
    store.putImage(version("a"), image("a.1", 1));
    const warmUp = { state: "failed", reason: "request 3 (warm-up event 2) failed: Error: no" } as const;
    expect(store.putState(version("a"), { state: "ready", warmUp })).toBe(true);
    store.removeImage("a.0");
    store.removeImage("a.0");
    expect(store.all()).toMatchObject([{ state: { state: "ready", warmUp }, images: [{ dir: "a.1", generation: 1 }] }]);
    await store.close();
  });

  it("keeps what was learned of a function, and of its images only for their revision", async () => {
    const store = Store.open(dir);
    const learned = (name: string) => store.all().find((known) => known.version.functionName === name)?.learned;
    store.put(version("a"));
    store.put(version("b"));
    store.putLearned([
      { version: version("a"), what: "idle-times", state: "1" },
      { version: version("a"), what: "heat", state: "2" },
      { version: version("b", "r0"), what: "heat", state: "of a revision that is gone" },
      { version: version("c"), what: "heat", state: "of a function that is gone" },
    ]);
    store.putLearned([{ version: version("a"), what: "idle-times", state: "3" }]);
    expect(learned("a")).toEqual([
      { what: "heat", state: "2" },
      { what: "idle-times", state: "3" },
    ]);
    expect(learned("b")).toEqual([]);
    store.put(version("a", "r2"));
    expect(learned("a")).toEqual([{ what: "idle-times", state: "3" }]);
    store.remove("a");
    store.put(version("a"));
    expect(learned("a")).toEqual([]);
    await store.close();
  });

  it("forgets the images when a version is replaced, and does not take those of the one before", async () => {
    const store = Store.open(dir);
    store.put(version("a"));
    store.putImage(version("a"), image("a.0"));
    store.put(version("a", "r2"));
    expect(store.all()).toMatchObject([{ state: { state: "pending" }, images: [] }]);
    expect(store.putImage(version("a", "r1"), image("a.1"))).toBe(false);
    expect(store.putState(version("a", "r1"), { state: "refused" })).toBe(false);
    expect(store.all()).toMatchObject([{ state: { state: "pending" }, images: [] }]);
    await store.close();
  });

  it("takes over the single image of a version that an older thaw recorded: it is generation 0 then", async () => {
    await Store.open(dir).close();
    const old = new Database(join(dir, "thaw.db"));
    old.exec(`DROP TABLE identity; DROP TABLE learned; DROP TABLE images; DROP TABLE versions; DROP TABLE functions; PRAGMA user_version = 0;
      CREATE TABLE functions (name TEXT PRIMARY KEY NOT NULL, created_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
      CREATE TABLE versions (
        function_name TEXT NOT NULL REFERENCES functions (name) ON DELETE CASCADE, version TEXT NOT NULL,
        revision_id TEXT NOT NULL, modified_ms INTEGER NOT NULL, config TEXT NOT NULL, code_hex TEXT NOT NULL,
        code_bytes INTEGER NOT NULL, image_state TEXT NOT NULL, image_reason TEXT, image_dir TEXT,
        PRIMARY KEY (function_name, version)) STRICT, WITHOUT ROWID;
      ALTER TABLE versions ADD COLUMN image_summary TEXT; PRAGMA user_version = 2;`);
    const summary = { id: "i", generation: 0, heat: 0, bytesOnDisk: 4096, report: REPORT };
    const insert = old.prepare("INSERT INTO versions VALUES (?, '$LATEST', 'r1', 17, ?, 'ab', 10, ?, NULL, ?, ?)");
    for (const [name, state, image, told] of [
      ["known", "ready", "known.0", JSON.stringify(summary)],
      ["oldest", "ready", "oldest.0", null],
      ["without", "refused", null, null],
    ] as const) {
      old.prepare("INSERT INTO functions VALUES (?, 17)").run(name);
      insert.run(name, JSON.stringify(version(name).config), state, image, told);
    }
    old.close();
    const store = Store.open(dir);
    const taken = { generation: 0, heat: 0, source: "deploy", createdMs: 17 };
    expect(store.all().map(({ version: { functionName }, state, images }) => [functionName, state.state, images])).toEqual([
      ["known", "ready", [{ ...taken, dir: "known.0", summary }]],
      ["oldest", "ready", [{ ...taken, dir: "oldest.0" }]],
      ["without", "refused", []],
    ]);
    await store.close();
  });

  it("forgets all of a function that was removed", async () => {
    const store = Store.open(dir);
    store.put(version("a"));
    store.remove("a");
    store.remove("a");
    expect(store.all()).toEqual([]);
    await store.close();
  });

  it("is readable by the server alone, because environments hold secrets", async () => {
    await Store.open(dir).close();
    expect((await stat(join(dir, "thaw.db"))).mode & 0o777).toBe(0o600);
  });
});

describe("a disk that is full in the middle of a transaction", () => {
  it("is told as that, though SQLite has rolled back by itself; nothing is changed, and the next one works", () => {
    const store = Store.open(dir);
    onTestFinished(() => store.close());
    store.put(version("a"));
    const { prepare } = Database.prototype;
    const spy = vi.spyOn(Database.prototype, "prepare").mockImplementation(function (this: Database.Database, sql: string) {
      if (!sql.startsWith("DELETE FROM functions")) return prepare.call(this, sql);
      this.exec("ROLLBACK");
      throw Object.assign(new Error("database or disk is full"), { code: "SQLITE_FULL" });
    });
    expect(() => store.remove("a")).toThrow('Function "a" could not be removed from the database. the disk is full');
    spy.mockRestore();
    expect(store.all()).toHaveLength(1);
    store.remove("a");
    expect(store.all()).toEqual([]);
  });

  it("has room for recording what makes room: functions and images are removed, one after the other", async () => {
    const reserve = join(dir, "thaw.reserve");
    const store = Store.open(dir);
    onTestFinished(() => store.close());
    for (const name of ["a", "b", "c"]) store.put(version(name));
    store.putImage(version("c"), image("c.1"));
    const { exec } = Database.prototype;
    // Full for as long as the reserve is there.
    const spy = vi.spyOn(Database.prototype, "exec").mockImplementation(function (this: Database.Database, sql: string) {
      if (sql !== "COMMIT" || !existsSync(reserve)) return exec.call(this, sql);
      exec.call(this, "ROLLBACK");
      throw Object.assign(new Error("database or disk is full"), { code: "SQLITE_FULL" });
    });
    expect(() => store.put(version("d"))).toThrow('Function "d" could not be recorded. the disk is full');
    store.remove("a");
    store.removeImage("c.1");
    store.remove("b");
    expect(store.all().map(({ version: { functionName }, images }) => [functionName, images])).toEqual([["c", []]]);
    spy.mockRestore();
    expect((await stat(reserve)).size).toBe(256 * 1024);
  });
});
