import { chmod, lstat, mkdtemp, readdir, readFile, readlink, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { isThawError } from "../base/errors.js";
import { hashCode, mendModes, stageCode } from "./code.js";
import { EXECUTABLE, LINK, zipOf } from "./testing.js";
import { LIMITS } from "./types.js";
import { readEntryBytes, readZip } from "./zip.js";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "thaw-code-"));
});
afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

const unpack = async (zip: Uint8Array): Promise<string> => {
  const final = join(dir, "functions", "hello", "abc");
  const staged = await stageCode(zip, final);
  await staged.publish();
  await staged.discard();
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
      "beyond the packed limit",
      () => new Uint8Array(LIMITS.packedBytes + 1),
      "it has 50 MiB, and the limit is 50 MiB. Leave out what the function does not need",
    ],
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

  it("with too many entries, naming both numbers", () => {
    const files = Object.fromEntries(Array.from({ length: LIMITS.packageEntries + 1 }, (_, index) => [`f${index}`, ""]));
    expect(() => readZip(zipOf(files))).toThrow("it has 20001 entries, and the limit is 20000. Bundle the code into fewer files");
  });

  it("with few entries in more directories than there may be entries", () => {
    const files = Object.fromEntries(Array.from({ length: 50 }, (_, index) => [`${index}/${"d/".repeat(480)}f`, ""]));
    expect(() => readZip(zipOf(files))).toThrow(
      "it has more entries, with the directories in their paths, and the limit is 20000. Bundle the code into fewer files",
    );
    const nested = Object.fromEntries(Array.from({ length: 50 }, (_, index) => [`${"d/".repeat(480)}${index}`, ""]));
    expect(readZip(zipOf(nested))).toHaveLength(50);
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

async function contents(zip: Uint8Array): Promise<Record<string, string>> {
  const files: Record<string, string> = {};
  for (const entry of readZip(zip)) {
    // An altered attribute may make a link of a file; its bytes are the same.
    if (entry.kind !== "directory") files[entry.path] = Buffer.from(await readEntryBytes(entry)).toString();
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

  it("to the hash that Lambda calls CodeSha256", async () => {
    const hash = await hashCode(Buffer.from("abc"));
    expect(hash.base64).toBe("ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
    expect(hash.hex).toMatch(/^ba7816bf/);
  });
});
