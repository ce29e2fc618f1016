import { chmodSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { findInterpreters, hiddenBelow, interpretersAt, mappedFiles } from "./interpreters.js";

const dir = mkdtempSync(join(tmpdir(), "thaw-interpreters-"));
afterAll(() => rmSync(dir, { recursive: true }));

describe("finding interpreters", () => {
  it("looks through a shim at the real binary", async () => {
    const shim = join(dir, "node");
    writeFileSync(shim, `#!/bin/sh\nexec ${process.execPath} "$@"\n`);
    chmodSync(shim, 0o755);
    const found = await findInterpreters(dir);
    const [major] = process.versions.node.split(".");
    expect(found.map(({ id, path, version }) => ({ id, path, version }))).toEqual([
      { id: `nodejs${major}.x`, path: realpathSync(process.execPath), version: process.versions.node },
    ]);
    expect(found[0]?.libraries.some((file) => /\/libc\.so/.test(file))).toBe(true);
  });

  it("passes over what does not run", async () => {
    writeFileSync(join(dir, "python3"), "#!/bin/sh\nexit 1\n");
    chmodSync(join(dir, "python3"), 0o755);
    expect((await findInterpreters(dir)).some(({ language }) => language === "python")).toBe(false);
  });

  it("prefers one that sandboxes can see to one before it that lies in a directory which they have of their own", async () => {
    const saying = (name: string, path: string): void => {
      const answer = JSON.stringify({ path, version: "3.99.0", prefixes: [], maps: "" });
      writeFileSync(join(dir, name), `#!/bin/sh\necho '${answer}'\n`);
      chmodSync(join(dir, name), 0o755);
    };
    const paths = async (): Promise<string[]> =>
      (await findInterpreters(dir)).filter(({ id }) => id === "python3.99").map(({ path }) => path);
    saying("python3", "/dev/null");
    expect(await paths()).toEqual(["/dev/null"]);
    saying("python3.99", realpathSync("/bin/sh"));
    expect(await paths()).toEqual([realpathSync("/bin/sh")]);
    expect(hiddenBelow("/tmp/node")).toBe("/tmp");
    expect(hiddenBelow("/tmpfiles/node")).toBeUndefined();
  });

  it("takes exactly those that are named, and refuses what is none by its path", async () => {
    const shim = join(dir, "named");
    writeFileSync(shim, `#!/bin/sh\nexec ${process.execPath} "$@"\n`);
    chmodSync(shim, 0o755);
    expect((await interpretersAt([shim])).map(({ path }) => path)).toEqual([realpathSync(process.execPath)]);
    await expect(interpretersAt([shim, join(dir, "absent")])).rejects.toThrow(
      `${join(dir, "absent")} is no interpreter that can be used`,
    );
  });

  it("reads files from /proc/PID/maps, each once, without deleted and anonymous ones", () => {
    const maps =
      "7f00-7f01 r--p 00000000 08:01 12   /usr/lib/a b.so\n7f01-7f02 r-xp 00001000 08:01 12   /usr/lib/a b.so\n7f02-7f03 rw-p 00000000 00:00 0 \n7f03-7f04 r--p 0 08:01 9 /x (deleted)\n7ff0-7ff1 rw-p 0 00:00 0   [stack]\n";
    expect(mappedFiles(maps)).toEqual(["/usr/lib/a b.so"]);
  });
});
