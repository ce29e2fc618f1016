import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  fsyncTree,
  mkdirDurably,
  removeTemporaries,
  removeTree,
  renameDurably,
  syncFileSystem,
  TEMPORARY_PREFIX,
  temporaryPath,
  writeFileDurably,
} from "./fsync.js";

let dir = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "thaw-fsync-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

describe("writing a file durably", () => {
  it("replaces the old content and leaves no temporary file", async () => {
    const path = join(dir, "state");
    await writeFileDurably(path, "old");
    await writeFileDurably(path, Buffer.from("new"));
    expect(readFileSync(path, "utf8")).toBe("new");
    expect(readdirSync(dir)).toEqual(["state"]);
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  it("keeps the old content and cleans up when the new one cannot be put in place", async () => {
    const path = join(dir, "taken");
    mkdirSync(path);
    writeFileSync(join(path, "inside"), "kept");
    await expect(writeFileDurably(path, "new")).rejects.toMatchObject({ code: "EISDIR" });
    expect(readdirSync(dir)).toEqual(["taken"]);
    expect(readFileSync(join(path, "inside"), "utf8")).toBe("kept");
  });
});

describe("directories", () => {
  it("are made with their parents, for the owner alone", async () => {
    const path = join(dir, "a/b/c");
    await mkdirDurably(path);
    await mkdirDurably(path);
    expect(statSync(path).isDirectory()).toBe(true);
    expect(statSync(path).mode & 0o777).toBe(0o700);
  });

  it("are flushed whole, with dangling links inside, and renamed across parents", async () => {
    await mkdirDurably(join(dir, "from/tree/deep"));
    await mkdirDurably(join(dir, "to"));
    writeFileSync(join(dir, "from/tree/deep/file"), "x");
    symlinkSync("/nonexistent", join(dir, "from/tree/link"));
    await fsyncTree(join(dir, "from/tree"));
    await renameDurably(join(dir, "from/tree"), join(dir, "to/tree"));
    expect(readFileSync(join(dir, "to/tree/deep/file"), "utf8")).toBe("x");
    expect(readdirSync(join(dir, "from"))).toEqual([]);
  });
});

describe("a file system", () => {
  it("is flushed whole, and one that is not there is an error", async () => {
    await syncFileSystem(dir);
    await expect(syncFileSystem(join(dir, "absent"))).rejects.toThrow("No such file or directory");
  });
});

describe("a tree", () => {
  it("is removed with all in it, and what links in it lead to is not", async () => {
    for (const name of ["tree/lib/deep", "other"]) mkdirSync(join(dir, name), { recursive: true });
    for (let index = 0; index < 40; index++) writeFileSync(join(dir, `tree/lib/${index}`), "");
    writeFileSync(join(dir, "other/kept"), "");
    symlinkSync("../other", join(dir, "tree/link"));
    symlinkSync("other", join(dir, "link"));
    await removeTree(join(dir, "tree"));
    await removeTree(join(dir, "link"));
    await removeTree(join(dir, "absent"));
    expect(readdirSync(dir)).toEqual(["other"]);
    expect(readdirSync(join(dir, "other"))).toEqual(["kept"]);
  });
});

describe("what an interrupted write left", () => {
  it("is recognised by its name and removed, and nothing else is", async () => {
    const left = temporaryPath(join(dir, "image"));
    mkdirSync(left);
    writeFileSync(join(left, "pages"), "half");
    writeFileSync(join(dir, "image"), "whole");
    const removed = await removeTemporaries(dir);
    expect(removed).toHaveLength(1);
    expect(removed[0]).toMatch(new RegExp(`^\\${TEMPORARY_PREFIX}image-[0-9a-f]{12}$`));
    expect(readdirSync(dir)).toEqual(["image"]);
  });

  it("outlasts somebody who still writes there", async () => {
    const left = temporaryPath(join(dir, "image"));
    mkdirSync(left);
    // Ends when the directory has gone, or after a second.
    const script = `
      const { writeFileSync } = require("node:fs");
      const end = Date.now() + 1000;
      for (let n = 0; n < 100 || Date.now() < end; n++) {
        writeFileSync(process.argv[1] + "/" + n, "");
        if (n === 99) process.stdout.write("writes");
      }`;
    const writer = spawn(process.execPath, ["-e", script, left], { stdio: ["ignore", "pipe", "ignore"] });
    const closed = once(writer, "close");
    await once(writer.stdout, "data");
    expect(await removeTemporaries(dir)).toHaveLength(1);
    await closed;
    expect(readdirSync(dir)).toEqual([]);
  });

  it("is nothing where there is no directory", async () => {
    expect(await removeTemporaries(join(dir, "absent"))).toEqual([]);
  });
});
