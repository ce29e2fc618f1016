import { describe, expect, it } from "vitest";
import { flagsKey, machineKey, suitsBase } from "./bases.js";
import type { Template } from "./templates.js";
import type { FunctionSpec } from "./types.js";

const node: Template = {
  id: 1,
  interpreter: { id: "nodejs20.x", language: "node", path: "/usr/bin/node", version: "20.20.0", prefixes: [], libraries: [] },
};
const python: Template = {
  id: 2,
  interpreter: { id: "python3.11", language: "python", path: "/usr/bin/python3", version: "3.11.2", prefixes: [], libraries: [] },
};
const spec = (runtime: string, memoryMb = 256, rest: Partial<FunctionSpec> = {}): FunctionSpec => ({
  name: "hello",
  version: "1",
  runtime,
  codeDir: "/code",
  handler: "index.handler",
  memoryMb,
  timeoutMs: 3000,
  env: {},
  tmpMb: 512,
  ...rest,
});
const here = { kernel: "6.18 #1", cpu: "abc", bootId: "1", runtime: "digest" };

describe("the key of a base", () => {
  it("has what the process is executed with, and nothing of the function", () => {
    const key = flagsKey(spec("nodejs20.x"), node);
    expect(flagsKey(spec("nodejs20.x", 256, { name: "other", handler: "a.b", env: { A: "1" }, tmpMb: 64 }), node)).toBe(key);
    expect(flagsKey(spec("nodejs20.x", 512), node)).not.toBe(key);
    expect(flagsKey(spec("python3.11", 512), python)).toBe(flagsKey(spec("python3.11", 256), python));
  });

  it("has what the image is bound to: kernel, CPU, interpreter, our own runtime; not the boot", () => {
    const key = machineKey(node, here);
    expect(machineKey(node, { ...here, bootId: "2" })).toBe(key);
    const newer = { ...node, interpreter: { ...node.interpreter, version: "20.20.1" } };
    const others = [machineKey(newer, here), machineKey(node, { ...here, kernel: "6.19 #1" })];
    others.push(machineKey(node, { ...here, cpu: "abd" }), machineKey(node, { ...here, runtime: "other" }));
    expect(new Set([key, ...others]).size).toBe(5);
  });
});

describe("an environment", () => {
  it.each([
    "NODE_OPTIONS",
    "NODE_PATH",
    "NODE_EXTRA_CA_CERTS",
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "LD_PRELOAD",
    "MALLOC_TRIM_THRESHOLD_",
    "LANG",
    "LC_ALL",
    "UV_THREADPOOL_SIZE",
    "SSL_CERT_FILE",
  ])("with %s must be there when the process begins", (name) => {
    expect(suitsBase({ OTHER: "1", [name]: "x" })).toBe(false);
  });

  it("of other names can be set later", () => {
    expect(suitsBase({})).toBe(true);
    expect(suitsBase({ NODE_ENV: "production", TABLE: "t", PATH: "/opt/bin", HOME: "/tmp", NO_COLOR: "1" })).toBe(true);
  });
});
