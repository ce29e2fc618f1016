import { randomBytes } from "node:crypto";
import { chmod, mkdir, mkdtemp, rm, symlink, truncate, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { strFromU8, unzipSync } from "fflate";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MIB } from "../base/units.js";
import { received } from "../platform/testing.js";
import { LIMITS } from "../platform/types.js";
import { readZip } from "../platform/zip.js";
import { type CodePackage, checkHandler, packCode } from "./code-package.js";
import { zipFiles } from "./zip-writer.js";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "thaw-pack-"));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

async function files(names: Readonly<Record<string, string>>): Promise<string> {
  for (const [name, text] of Object.entries(names)) {
    await mkdir(join(dir, name, ".."), { recursive: true });
    await writeFile(join(dir, name), text);
  }
  return dir;
}

/** All of a package. */
async function zipOf(code: CodePackage): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of code.zip()) pieces.push(piece);
  return Buffer.concat(pieces);
}

const unpack = (zip: Buffer) => Object.fromEntries(Object.entries(unzipSync(zip)).map(([name, data]) => [name, strFromU8(data)]));

describe("packing a folder", () => {
  it("takes all files, but not .git and thaw.json", async () => {
    await files({
      "index.js": "a",
      "lib/deep/b.js": "b",
      ".git/HEAD": "x",
      "lib/.git/HEAD": "x",
      "thaw.json": "{}",
      ".hidden": "h",
    });
    const code = await packCode(dir);
    expect(unpack(await zipOf(code))).toEqual({ "index.js": "a", "lib/deep/b.js": "b", ".hidden": "h" });
  });

  it("gives the same bytes for the same files, whatever their times", async () => {
    await files({ "b.js": "b", "a.js": "a" });
    const first = await zipOf(await packCode(dir));
    await utimes(join(dir, "a.js"), 1e9, 1e9);
    expect((await zipOf(await packCode(dir))).equals(first)).toBe(true);
  });

  it("keeps the permission to execute, and lets everyone read", async () => {
    await files({ run: "#!/bin/sh", "a.js": "" });
    await chmod(join(dir, "run"), 0o700);
    await chmod(join(dir, "a.js"), 0o600);
    const zip = await zipOf(await packCode(dir));
    // Central directory: 4 bytes of attributes at offset 38 of each entry, the name at 46.
    const modeOf = (name: string) => {
      const entry = zip.lastIndexOf(name) - 46;
      expect(zip.toString("latin1", entry, entry + 4)).toBe("PK\x01\x02");
      return (zip.readUInt32LE(entry + 38) >>> 16).toString(8);
    };
    expect(modeOf("run")).toBe("100555");
    expect(modeOf("a.js")).toBe("100444");
  });

  it("replaces links inside the folder by what they point to, and survives a link to an ancestor", async () => {
    await files({ "lib/a.js": "a" });
    await symlink("lib/a.js", join(dir, "link.js"));
    await symlink("lib", join(dir, "other"));
    await symlink("..", join(dir, "lib/up"));
    expect(unpack(await zipOf(await packCode(dir)))).toEqual({ "lib/a.js": "a", "link.js": "a", "other/a.js": "a" });
  });

  it.each([
    [
      "/etc/hostname",
      /^.* cannot be deployed\. link is a symbolic link that leads to \/etc\/hostname, outside the folder\. Replace the link/,
    ],
    ["nowhere", /link is a symbolic link that leads to nothing\. Remove the link/],
  ])("refuses a link to %s", async (target, sentence) => {
    await files({ "a.js": "a" });
    await symlink(target, join(dir, "link"));
    await expect(packCode(dir)).rejects.toThrow(sentence);
  });

  it("refuses more than a function may unpack to, without reading it", async () => {
    await files({ big: "" });
    await truncate(join(dir, "big"), 251 * 1024 * 1024);
    await expect(packCode(dir)).rejects.toThrow(
      /too large to be deployed\. its files have 251 MiB, the limit is 250 MiB\. Most is in big \(251 MiB\)\. Leave out/,
    );
  });

  it("names a file whose name is not UTF-8", async () => {
    await files({ "index.js": "a" });
    await writeFile(Buffer.concat([Buffer.from(`${dir}/bad`), Buffer.from([0xff])]), "b");
    await expect(packCode(dir)).rejects.toMatchObject({ code: "CODE_INVALID", why: "The name of bad\ufffd is not UTF-8" });
  });

  it("names a file that cannot be read", async () => {
    // Root may read every file of a disk, but not what the kernel takes writes on alone.
    await expect(packCode("/proc/sys/net/ipv4/route").then(zipOf)).rejects.toMatchObject({
      code: "CODE_INVALID",
      why: expect.stringMatching(/^flush cannot be read: EACCES/),
    });
  });

  it("refuses folders that links multiply, however few there are on the disk", async () => {
    for (const name of ["empty", "many", "more"]) await mkdir(join(dir, name));
    for (let way = 0; way < 15; way++) {
      await symlink("../empty", join(dir, "many", `${way}`));
      await symlink("../many", join(dir, "more", `${way}`));
    }
    const pack = (packageEntries: number) => packCode(dir, [], { ...LIMITS, packageEntries });
    await expect(pack(200)).rejects.toThrow(
      /too large to be deployed\. it has 258 files and folders, those that links lead to included, the limit is 200/,
    );
    await expect(pack(100)).rejects.toThrow(
      /it has more than 200 files and folders, those that links lead to included, the limit is 100/,
    );
  });

  it("names what it has most of where that is too much", async () => {
    await files({ "index.js": "a", "node_modules/small/index.js": "b".repeat(50) });
    for (let index = 0; index < 20; index++) await files({ [`node_modules/@big/one/lib/${index}.js`]: "x" });
    await files({ "node_modules/@big/one/package.json": "{}", "node_modules/data/large.json": "c".repeat(1_000) });
    await expect(packCode(dir, [], { ...LIMITS, packageEntries: 20 })).rejects.toMatchObject({
      why: expect.stringMatching(
        /limit is 20\. Most is in node_modules\/@big\/one \(21 files\), node_modules\/(small|data) \(1 files\)/,
      ),
    });
    await expect(packCode(dir, [], { ...LIMITS, unpackedBytes: 1_000 })).rejects.toMatchObject({
      code: "CODE_INVALID",
      why: "its files have 1 KiB, the limit is 1000 B. Most is in node_modules/data (1000 B), node_modules/small (50 B), node_modules/@big (22 B), index.js (1 B)",
      fix: "Leave out what the function does not need at run time",
    });
  });

  it("packs large files in blocks, and more files than a zip of the first kind holds", async () => {
    const noise = randomBytes(3 * MIB);
    await writeFile(join(dir, "exact"), noise);
    await writeFile(join(dir, "text"), "thaw ".repeat(500_000));
    await files({ empty: "" });
    const unpacked = unzipSync(await zipOf(await packCode(dir)));
    expect(noise.equals(unpacked.exact ?? Buffer.of())).toBe(true);
    expect([strFromU8(unpacked.text ?? Buffer.of()), unpacked.empty?.length]).toEqual(["thaw ".repeat(500_000), 0]);
    const many = ["a", "b", "c"].map((path) => ({ path, from: join(dir, "empty"), bytes: 0, isExecutable: false }));
    const pieces: Buffer[] = [];
    const fail = (_: unknown, error: unknown): never => expect.unreachable(String(error));
    for await (const piece of zipFiles(many, () => undefined, fail, 3)) pieces.push(piece);
    const zip = await received(Buffer.concat(pieces));
    const entries = await readZip(zip).finally(() => zip.close());
    expect(entries.map(({ path }) => path)).toEqual(["a", "b", "c"]);
  });

  it("packs what a file has when it is read, though it was another size when it was looked at", async () => {
    await files({ grown: "a", shrunk: "bbbb" });
    const code = await packCode(dir);
    await files({ grown: "a".repeat(100_000), shrunk: "b" });
    expect(unpack(await zipOf(code))).toEqual({ grown: "a".repeat(100_000), shrunk: "b" });
  });

  it("tells how much it has read", async () => {
    await files({ "a.js": "aaaa" });
    // A name like any other.
    await writeFile(join(dir, "__proto__"), "bb");
    const code = await packCode(dir);
    expect([...code.names]).toEqual(["__proto__", "a.js"]);
    let read = 0;
    for await (const _ of code.zip((bytes) => (read += bytes)));
    expect([read, code.bytes]).toEqual([6, 6]);
  });

  it("refuses a folder without files", async () => {
    await expect(packCode(dir)).rejects.toThrow(`${dir} cannot be deployed. It holds no files`);
  });
});

describe("a path that is no folder", () => {
  it("says that it does not exist", async () => {
    await expect(packCode(join(dir, "nope"))).rejects.toThrow(/nope cannot be deployed\. It does not exist\. Give the folder/);
  });

  it("says what to do with a single file", async () => {
    await files({ "index.js": "a" });
    await expect(packCode(join(dir, "index.js"))).rejects.toThrow(
      /neither a folder nor a \.zip file\. Give the folder that holds index\.js/,
    );
  });

  it("takes a finished zip as it is", async () => {
    await files({ "code.zip": "anything: the server judges it" });
    expect((await zipOf(await packCode(join(dir, "code.zip")))).toString()).toBe("anything: the server judges it");
  });
});

describe("a handler that is named", () => {
  it.each(["index.handler", "lib/app.main", "lib/app.nested.main", "pkg.handler", "lib.app.main"])(
    "%s is found",
    async (handler) => {
      await files({ "index.mjs": "", "lib/app.py": "", "pkg/__init__.py": "" });
      checkHandler(await packCode(dir), handler, dir);
    },
  );

  it("that is not there is refused before anything is sent", async () => {
    await files({ "index.mjs": "" });
    const code = await packCode(dir);
    expect(() => checkHandler(code, "app.handler", dir)).toThrow(
      `Handler "app.handler" is not in ${dir}. There is no app.js, .mjs, .cjs or .py. Name the file that exports the handler`,
    );
    expect(() => checkHandler(code, "handler", dir)).toThrow('Handler "handler" cannot be read. It must be FILE.EXPORT');
  });
});
