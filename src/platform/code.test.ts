import { randomBytes } from "node:crypto";
import { readlinkSync } from "node:fs";
import { chmod, type FileHandle, lstat, mkdtemp, open, readdir, readFile, readlink, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import fc from "fast-check";
import { strToU8, zipSync } from "fflate";
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { isThawError } from "../base/errors.js";
import { MIB } from "../base/units.js";
import { mendModes, stageCode } from "./code.js";
import { EXECUTABLE, LINK, received, zipOf } from "./testing.js";
import { LIMITS } from "./types.js";
import { readContent, readZip, type ZipLimits } from "./zip.js";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "thaw-code-"));
});
afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

const unpack = async (zip: Uint8Array): Promise<string> => {
  const final = join(dir, "functions", "hello", "abc");
  const file = await received(zip);
  try {
    const staged = await stageCode(file, final);
    await staged.publish();
    await staged.discard();
  } finally {
    await file.close();
  }
  return final;
};

/** Changes bytes of every central and local header of a package. */
function patched(zip: Uint8Array, change: (view: DataView, at: number, central: boolean) => void): Uint8Array {
  const copy = zip.slice();
  const view = new DataView(copy.buffer);
  for (let at = 0; at + 4 <= copy.length; at++) {
    const signature = view.getUint32(at, true);
    if (signature === 0x02014b50 || signature === 0x04034b50) change(view, at, signature === 0x02014b50);
  }
  return copy;
}

describe("a code package is refused", () => {
  const refusals: [string, () => Uint8Array, string][] = [
    [
      "when it is not a zip file",
      () => Buffer.from("#!/bin/sh\n"),
      "it is not a zip file, or was cut short. Send the bytes of a zip file",
    ],
    ["when it is empty", () => zipOf({}), "it is empty. Put the file with the handler into it"],
    ["with an absolute path", () => zipOf({ "/etc/passwd": "x" }), `"/etc/passwd" is an absolute path. Pack it from inside`],
    ["with a drive letter", () => zipOf({ "C:/x.js": "x" }), `"C:/x.js" is an absolute path`],
    ["with .. in a name", () => zipOf({ "a/../../x": "x" }), `"a/../../x" leads out of the package`],
    ["with a backslash", () => zipOf({ "a\\x": "x" }), `"a\\x" contains a backslash`],
    [
      "with a link to an absolute path",
      () => zipOf({ up: ["/etc", LINK] }),
      `"up" is a symbolic link to "/etc", which may lie outside`,
    ],
    ["with a link that climbs out", () => zipOf({ "a/up": ["../../x", LINK] }), `"a/up" is a symbolic link to "../../x"`],
    ["with a link that climbs after going down", () => zipOf({ "a/up": ["b/../../../x", LINK] }), `"a/up" is a symbolic link to`],
    [
      "with a file below a link",
      () => zipOf({ up: ["a", LINK], "up/x": "x" }),
      `"up/x" lies inside "up", which is a symbolic link. Pack it again`,
    ],
    ["with a file below a file", () => zipOf({ up: "a", "up/x": "x" }), `"up/x" lies inside "up", which is a file`],
    ["with two names for one file", () => zipOf({ "a/x": "1", "a//x": "2" }), `it holds "a/x" twice`],
    [
      "with a device",
      () => zipOf({ tty: ["x", { os: 3, attrs: (0o020666 << 16) >>> 0 }] }),
      `"tty" is neither a file, nor a directory`,
    ],
    ["with a name that is too long", () => zipOf({ ["n".repeat(300)]: "x" }), "is too long. Use names of at most 255 bytes"],
    [
      "when it says that it unpacks to more than the limit",
      () => patched(zipOf(), (view, at, central) => central && view.setUint32(at + 24, LIMITS.unpackedBytes + 1, true)),
      "it unpacks to more than 250 MiB, which is the limit",
    ],
    [
      "when a file inflates to more than it says",
      () => patched(zipOf({ "a.js": "x".repeat(5000) }), (view, at, central) => central && view.setUint32(at + 24, 100, true)),
      `"a.js" is larger than its header says`,
    ],
    [
      "when a file's bytes are not those of its checksum",
      () => patched(zipOf(), (view, at, central) => central && view.setUint32(at + 16, 1, true)),
      `the data of "index.mjs" is damaged: its checksum is another. Pack it again`,
    ],
    [
      "when it is encrypted",
      () => patched(zipOf(), (view, at, central) => central && view.setUint16(at + 8, 1, true)),
      `"index.mjs" is encrypted. Pack it without a password`,
    ],
    [
      "when it uses another method than deflate",
      () => patched(zipOf(), (view, at, central) => central && view.setUint16(at + 10, 12, true)),
      `"index.mjs" is packed with method 12`,
    ],
  ];
  for (const [when, make, sentence] of refusals) {
    it(when, async () => {
      await expect(unpack(make())).rejects.toThrow(`The code package cannot be unpacked. `);
      const error = await unpack(make()).catch((caught: unknown) => caught);
      expect(isThawError(error, "CODE_INVALID")).toBe(true);
      expect((error as Error).message).toContain(sentence);
      expect(await readdir(join(dir, "functions", "hello")).catch(() => [])).toEqual([]);
    });
  }

  const list = async (zip: Uint8Array, limits?: ZipLimits) => {
    const file = await received(zip);
    return readZip(file, limits).finally(() => file.close());
  };
  const some = { unpackedBytes: 10_000, packageEntries: 100 };

  it("with too many entries, naming both numbers and where most of them are", async () => {
    const names = [...Array(90).keys()].map((index) => `node_modules/many/lib/f${index}`);
    const others = [...Array(30).keys()].map((index) => `node_modules/some/f${index}`);
    const files = Object.fromEntries(["node_modules/many/package.json", ...names, ...others].map((name) => [name, ""]));
    await expect(list(zipOf(files), some)).rejects.toThrow(
      "it has 121 entries, and the limit is 100. Most is in node_modules/many (91 files), node_modules/some (30 files). Leave out what",
    );
    const more = Object.fromEntries(Array.from({ length: 201 }, (_, index) => [`f${index}`, ""]));
    await expect(list(zipOf(more), some)).rejects.toThrow("it has 201 entries, and the limit is 100. Leave out what");
  });

  it("that unpacks to too much, naming where most of it is", async () => {
    const files = { "index.js": "x", "lib/small.js": "y".repeat(1_000), "lib/large/data.json": "z".repeat(9_500) };
    await expect(list(zipOf(files), some)).rejects.toThrow(
      "it unpacks to more than 9.8 KiB, which is the limit. Most is in lib/large (9.3 KiB), lib/small.js (1000 B), index.js (1 B). Leave",
    );
  });

  it("with few entries in more directories than there may be entries", async () => {
    const files = Object.fromEntries(Array.from({ length: 5 }, (_, index) => [`${index}/${"d/".repeat(30)}f`, ""]));
    await expect(list(zipOf(files), some)).rejects.toThrow(
      "it has more entries, with the directories in their paths, and the limit is 100. Most is in ",
    );
    const nested = Object.fromEntries(Array.from({ length: 50 }, (_, index) => [`${"d/".repeat(30)}${index}`, ""]));
    expect(await list(zipOf(nested), some)).toHaveLength(50);
  });

  it("with a list of files that is larger than memory is given for, whatever it says of itself", async () => {
    const end = Buffer.alloc(22);
    end.writeUInt32LE(0x06054b50);
    end.writeUInt16LE(1, 8);
    end.writeUInt16LE(1, 10);
    end.writeUInt32LE(40 * MIB, 12);
    const holes = Buffer.alloc(40 * MIB);
    await expect(list(Buffer.concat([holes, end]))).rejects.toThrow("the list of its files has 40 MiB, and the limit is 32 MiB");
    await expect(list(end)).rejects.toThrow("its directory has another length than its end says");
  });

  it("whole, cut short at any byte or with any byte changed, or unpacks to the same files: it never crashes", async () => {
    const zip = zipOf({ "index.js": "exports.handler = async () => 1;", "lib/a.txt": "abc".repeat(50) });
    const whole = await contents(zip);
    await fc.assert(
      fc.asyncProperty(fc.nat(zip.length - 1), fc.integer({ min: 1, max: 255 }), fc.boolean(), async (at, mask, cut) => {
        const bad = cut ? zip.slice(0, at) : zip.map((byte, index) => (index === at ? byte ^ mask : byte));
        try {
          const seen = await contents(bad);
          // Names are not covered by a checksum, nor are dates and attributes; contents are.
          expect(Object.values(seen).sort()).toEqual(Object.values(whole).sort());
        } catch (error) {
          if (!isThawError(error, "CODE_INVALID")) throw error;
        }
      }),
      { numRuns: 300 },
    );
  });
});

async function contentOf(...[file, entry]: Parameters<typeof readContent>): Promise<Buffer> {
  const pieces: Uint8Array[] = [];
  for await (const piece of readContent(file, entry)) pieces.push(piece);
  return Buffer.concat(pieces);
}

async function contents(zip: Uint8Array): Promise<Record<string, string>> {
  const files: Record<string, string> = {};
  const file = await received(zip);
  try {
    for (const entry of await readZip(file)) {
      // An altered attribute may make a link of a file; its bytes are the same.
      if (entry.kind !== "directory") files[entry.path] = (await contentOf(file, entry)).toString();
    }
  } finally {
    await file.close();
  }
  return files;
}

describe("a code package is unpacked", () => {
  it("with its files readable by everyone whatever the umask, executables executable, and links inside kept", async () => {
    const before = process.umask(0o077);
    try {
      const final = await unpack(
        zipOf({
          "index.js": "exports.handler = 1",
          "bin/tool": ["#!/bin/sh", EXECUTABLE],
          "node_modules/.bin/tool": ["../../bin/tool", LINK],
        }),
      );
      expect(await readFile(join(final, "index.js"), "utf8")).toBe("exports.handler = 1");
      expect((await stat(final)).mode & 0o777).toBe(0o755);
      expect((await stat(join(final, "node_modules"))).mode & 0o777).toBe(0o755);
      expect((await stat(join(final, "index.js"))).mode & 0o777).toBe(0o644);
      expect((await stat(join(final, "bin/tool"))).mode & 0o777).toBe(0o755);
      expect((await lstat(join(final, "node_modules/.bin/tool"))).isSymbolicLink()).toBe(true);
      expect(await readlink(join(final, "node_modules/.bin/tool"))).toBe("../../bin/tool");
    } finally {
      process.umask(before);
    }
  });

  it("and is readable by everyone again when it was copied under a umask that took that away", async () => {
    const final = await unpack(zipOf({ "run.sh": ["#!/bin/sh", EXECUTABLE], "lib/index.js": "1", current: ["lib", LINK] }));
    const paths = [".", "lib", "run.sh", "lib/index.js"];
    const modes = async (): Promise<string[]> =>
      Promise.all(paths.map(async (path) => ((await stat(join(final, path))).mode & 0o777).toString(8)));
    expect(await mendModes(final)).toBe(false);
    for (const path of paths) await chmod(join(final, path), path.endsWith(".js") ? 0o600 : 0o700);
    expect(await mendModes(final)).toBe(true);
    expect(await modes()).toEqual(["755", "755", "755", "644"]);
    expect([await mendModes(final), await mendModes(join(dir, "none"))]).toEqual([false, false]);
  });

  it("once: the same package is found where it was unpacked, and stays there", async () => {
    const zip = zipOf({ "index.js": "1", "lib/a.js": "2" });
    const final = await unpack(zip);
    const { ino } = await stat(join(final, "index.js"));
    const file = await received(zip);
    const again = await stageCode(file, final);
    await file.close();
    expect([again.dir, again.files, await readdir(join(dir, "functions/hello"))]).toEqual([
      final,
      ["index.js", "lib/a.js"],
      ["abc"],
    ]);
    await again.publish();
    await again.discard();
    expect((await stat(join(final, "index.js"))).ino).toBe(ino);
  });

  it("in pieces where it is large, stored or deflated, whatever stands behind its name", async () => {
    const large = randomBytes(1_500_000);
    const text = "thaw ".repeat(400_000);
    const extra = { 0x9999: new Uint8Array(1_000) };
    const zip = zipSync({ stored: [large, { level: 0, extra }], noise: large, "a.txt": [strToU8(text), { extra }] });
    const final = await unpack(zip);
    expect((await readFile(join(final, "stored"))).equals(large)).toBe(true);
    expect((await readFile(join(final, "noise"))).equals(large)).toBe(true);
    expect(await readFile(join(final, "a.txt"), "utf8")).toBe(text);
  });

  it.each([
    [
      "inflates to more than it says",
      (view: DataView, at: number) => view.setUint32(at + 24, 1_000_000, true),
      "is larger than its header says",
    ],
    [
      "inflates to less than it says",
      (view: DataView, at: number) => view.setUint32(at + 24, 3_000_000, true),
      "is damaged: its checksum is another",
    ],
    [
      "has other bytes than its checksum",
      (view: DataView, at: number) => view.setUint32(at + 16, 1, true),
      "is damaged: its checksum is another",
    ],
    ["ends in the middle", (view: DataView, at: number) => view.setUint32(at + 20, 1_000, true), "is damaged"],
  ])("or not at all when a large file %s", async (_, change, sentence) => {
    const zip = zipOf({ "a.txt": "thaw ".repeat(400_000), "b.txt": "b".repeat(70_000) });
    let first = true;
    const bad = patched(zip, (view, at, central) => {
      if (central && first) change(view, at);
      if (central) first = false;
    });
    await expect(unpack(bad)).rejects.toThrow(`"a.txt" ${sentence}`);
    expect(await readdir(join(dir, "functions", "hello"))).toEqual([]);
  });

  it("of 65,535 files, which some programs pack without a second end record", async () => {
    const names = [...Array(65_535).keys()].map((index) => `f${index}`);
    const file = await received(zipSync(Object.fromEntries(names.map((name) => [name, new Uint8Array()])), { level: 0 }));
    expect(await readZip(file).finally(() => file.close())).toHaveLength(65_535);
  });

  it("of more than 65,534 files, as other programs pack them", async () => {
    const names = [...Array(66_000).keys()].map((index) => `f${index}`);
    const zip = Buffer.from(zipSync(Object.fromEntries(names.map((name) => [name, new Uint8Array()])), { level: 0 }));
    // What the library wrote of the count has too few bits; the second end record is appended as others do.
    const end = zip.subarray(-22);
    const at = end.readUInt32LE(16);
    const bytes = end.readUInt32LE(12);
    const end64 = Buffer.alloc(56);
    end64.writeUInt32LE(0x06064b50);
    end64.writeBigUInt64LE(44n, 4);
    for (const [offset, value] of [
      [24, 66_000],
      [32, 66_000],
      [40, bytes],
      [48, at],
    ] as const)
      end64.writeBigUInt64LE(BigInt(value), offset);
    const locator = Buffer.alloc(20);
    locator.writeUInt32LE(0x07064b50);
    locator.writeBigUInt64LE(BigInt(zip.length - 22), 8);
    end.writeUInt16LE(0xffff, 8);
    end.writeUInt16LE(0xffff, 10);
    const file = await received(Buffer.concat([zip.subarray(0, -22), end64, locator, end]));
    const entries = await readZip(file).finally(() => file.close());
    expect([entries.length, entries.at(-1)?.path]).toEqual([66_000, "f65999"]);
    const cut = await received(Buffer.concat([zip.subarray(0, -22), end64, end]));
    await expect(readZip(cut).finally(() => cut.close())).rejects.toThrow("its directory has another length than its end says");
  });
});

it("unpacked code is flushed, files and directories, before it gets its name, and that behind it", async () => {
  const any = await open(join(dir, "any"), "w");
  const handles = Object.getPrototypeOf(any) as FileHandle;
  await any.close();
  const { sync } = handles;
  const flushed: string[] = [];
  const spy = vi.spyOn(handles, "sync").mockImplementation(function (this: FileHandle) {
    flushed.push(readlinkSync(`/proc/self/fd/${this.fd}`));
    return sync.call(this);
  });
  onTestFinished(() => spy.mockRestore());
  const final = join(dir, "functions", "hello", "abc");
  const file = await received(zipOf({ "index.mjs": "1", "lib/a.js": "2" }));
  const staged = await stageCode(file, final);
  const [temporary = ""] = await readdir(dirname(final));
  const at = join(dirname(final), temporary);
  const tree = [at, join(at, "index.mjs"), join(at, "lib"), join(at, "lib/a.js")];
  expect(flushed.filter((path) => path.startsWith(at)).sort()).toEqual(tree);
  flushed.length = 0;
  await staged.publish();
  expect(flushed).toEqual([dirname(final)]);
  await file.close();
});
