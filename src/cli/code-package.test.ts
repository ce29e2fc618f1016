import { chmod, mkdir, mkdtemp, rm, symlink, truncate, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { strFromU8, unzipSync } from "fflate";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { checkHandler, packCode } from "./code-package.js";

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
    expect(unpack(code.zip)).toEqual({ "index.js": "a", "lib/deep/b.js": "b", ".hidden": "h" });
    expect(code.fileCount).toBe(3);
  });

  it("gives the same bytes for the same files, whatever their times", async () => {
    await files({ "b.js": "b", "a.js": "a" });
    const first = (await packCode(dir)).zip;
    await utimes(join(dir, "a.js"), 1e9, 1e9);
    expect((await packCode(dir)).zip.equals(first)).toBe(true);
  });

  it("keeps the permission to execute, and lets everyone read", async () => {
    await files({ run: "#!/bin/sh", "a.js": "" });
    await chmod(join(dir, "run"), 0o700);
    await chmod(join(dir, "a.js"), 0o600);
    const { zip } = await packCode(dir);
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
    expect(unpack((await packCode(dir)).zip)).toEqual({ "lib/a.js": "a", "link.js": "a", "other/a.js": "a" });
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
    await expect(packCode(dir)).rejects.toThrow(/too large to be deployed\. its files are larger than 250 MiB/);
  });

  it("names a file whose name is not UTF-8", async () => {
    await files({ "index.js": "a" });
    await writeFile(Buffer.concat([Buffer.from(`${dir}/bad`), Buffer.from([0xff])]), "b");
    await expect(packCode(dir)).rejects.toMatchObject({ code: "CODE_INVALID", why: "The name of bad\ufffd is not UTF-8" });
  });

  it("names a file that cannot be read", async () => {
    // Root may read every file of a disk, but not what the kernel takes writes on alone.
    await expect(packCode("/proc/sys/net/ipv4/route")).rejects.toMatchObject({
      code: "CODE_INVALID",
      why: expect.stringMatching(/^flush cannot be read: EACCES/),
    });
  });

  it("refuses folders that links multiply, however few there are on the disk", async () => {
    for (const name of ["empty", "many", "more"]) await mkdir(join(dir, name));
    for (let way = 0; way < 150; way++) {
      await symlink("../empty", join(dir, "many", `${way}`));
      await symlink("../many", join(dir, "more", `${way}`));
    }
    await expect(packCode(dir)).rejects.toThrow(
      /too large to be deployed\. it has more than 20000 files and folders, those that links lead to included/,
    );
  });

  it("refuses a file that no package can hold, rather than leave it out", async () => {
    await files({ "index.js": "a" });
    await writeFile(join(dir, "__proto__"), "b");
    await expect(packCode(dir)).rejects.toMatchObject({ code: "CODE_INVALID", why: '"__proto__" cannot be the name of a file' });
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
    expect((await packCode(join(dir, "code.zip"))).zip.toString()).toBe("anything: the server judges it");
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
