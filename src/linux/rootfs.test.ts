import { tmpdir } from "node:os";
import { describe, expect, it } from "vitest";
import type { Interpreter } from "./interpreters.js";
import { encodePlan, encodeStrings, planRoot } from "./rootfs.js";

const INTERPRETER: Interpreter = {
  id: "nodejs20.x",
  language: "node",
  path: process.execPath,
  version: "20.0.0",
  prefixes: [],
  libraries: [],
};
const PARTS = { huskPath: process.execPath, runtimeDir: tmpdir() };

describe("a root file system plan", () => {
  it("binds the interpreter, its libraries, runtime and husk, and no other directory of the host", () => {
    const binds = planRoot(INTERPRETER, PARTS).flatMap((operation) => (operation.kind === "bind" ? [operation] : []));
    const targets = binds.map(({ target }) => target);
    expect(targets).toContain("/run/thaw/husk");
    expect(targets).toContain("/var/runtime");
    expect(targets).toContain(process.execPath);
    expect(new Set(targets).size).toBe(targets.length);
    for (const path of ["/", "/etc", "/usr", "/usr/bin", "/usr/lib", "/home", "/root", "/var", "/proc", "/sys", "/dev"])
      expect(targets).not.toContain(path);
  });

  it("is encoded as four strings for each operation", () => {
    const bytes = encodePlan([
      { kind: "dir", path: "/tmp", mode: 0o1777 },
      { kind: "bind", source: "/a", target: "/b" },
    ]);
    expect(bytes.toString()).toBe("dir\0/tmp\x001777\0\0bind\0/a\0/b\0\0");
  });

  it("refuses a NUL that would shift every later string", () => {
    expect(() => encodeStrings(["a\0b"])).toThrow(/holds a NUL/);
  });
});
