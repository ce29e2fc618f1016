import { describe, expect, it } from "vitest";
import { withOwnLibraries } from "./private-interpreters.js";

const prefix = "/opt/pythons/3.11.7";

describe("the path by which an interpreter finds its library", () => {
  it("becomes relative to the binary, in as many bytes", () => {
    const binary = Buffer.from(`\x7fELF\0libpython3.11.so\0${prefix}/lib\0libc.so.6\0`);
    const patched = withOwnLibraries(binary, prefix);
    expect(patched.length).toBe(binary.length);
    expect(patched.toString()).toContain("\0$ORIGIN/../lib\0");
    expect(patched.toString()).not.toContain(prefix);
    expect(patched.toString()).toMatch(/libc\.so\.6\0$/);
    expect(binary.toString()).toContain(prefix);
  });

  it("stays when it is only part of another string, or absent", () => {
    const binary = Buffer.from(`\0/mnt${prefix}/lib\0${prefix}/libexec\0`);
    expect(withOwnLibraries(binary, prefix).equals(binary)).toBe(true);
  });

  it("cannot be replaced when there is no room for it", () => {
    expect(() => withOwnLibraries(Buffer.from("\0/usr/lib\0"), "/usr")).toThrow("the prefix /usr is too short");
  });
});
