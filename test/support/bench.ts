/** A world whose functions are written in its tests, and what such tests say of them. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect } from "vitest";
import { isThawError, type ThawError } from "../../src/base/errors.js";
import type { FunctionSpec, Image, Instance, InvokeResult } from "../../src/engine/index.js";
import { eventually } from "./wait.js";
import { opened, World } from "./world.js";

/** Without pooled husks, so that whatever lives in a cgroup of its own was started by the test; functions of one runtime share their memory. */
export class Bench extends World {
  private functions = 0;

  constructor() {
    super({ sharedRuntime: true });
  }

  override async open(): Promise<void> {
    await super.open();
    this.engine.pool({ generic: 0 });
  }

  /** Writes a code package. */
  code(files: Readonly<Record<string, string>>): string {
    const dir = join(this.root, `code-${++this.functions}`);
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(dirname(join(dir, path)), { recursive: true });
      writeFileSync(join(dir, path), text);
    }
    return dir;
  }

  /** A Node function from the text of its module (CommonJS). */
  node(source: string, overrides: Partial<FunctionSpec> = {}): FunctionSpec {
    return this.specOf("node", this.code({ "index.js": source }), overrides);
  }

  /** A Python function from the text of its module. */
  python(source: string, overrides: Partial<FunctionSpec> = {}): FunctionSpec {
    return this.specOf("python", this.code({ "index.py": source }), overrides);
  }

  /** Boots, serves one request, freezes, ends. */
  async image(spec: FunctionSpec, event: unknown = {}): Promise<Image> {
    const instance = await this.engine.boot(spec);
    await instance.invoke(JSON.stringify(event));
    return await instance.freeze({ then: "end" });
  }

  /** Pids of everything that lives in the engine's sandboxes, their inits included. */
  pids(): number[] {
    const found = new Set<number>();
    for (const dir of this.cgroups("pids")) {
      for (const line of readFileSync(join(dir, "cgroup.procs"), "utf8").split("\n")) if (line !== "") found.add(Number(line));
    }
    return [...found];
  }

  /** The sandboxes' cgroups of one controller, in use or not. */
  cgroups(controller: string): string[] {
    const parent = (this.engine as unknown as { parents: { dirs: Record<string, string> } }).parents.dirs;
    const dir = parent[controller] ?? parent["unified"] ?? "";
    return existsSync(dir)
      ? readdirSync(dir)
          .filter((name) => /^h\d+$/.test(name))
          .map((name) => join(dir, name))
      : [];
  }

  /** Waits until nothing lives in any sandbox; the test fails when something stays. */
  async quiet(): Promise<void> {
    await eventually(() =>
      expect([this.pids(), this.engine.stats().instances], "processes and instances left behind").toEqual([[], 0]),
    );
  }
}

/** A bench for all tests of a file or group. */
export function useBench(): Bench {
  return opened(new Bench());
}

/** The value that the handler returned. */
export function returned(result: InvokeResult): unknown {
  return JSON.parse(result.payload.toString("utf8"));
}

/** The error object of a failed invocation. */
export function errorOf(result: InvokeResult): { errorType: string; errorMessage: string } {
  expect(result.functionError, result.payload.toString("utf8").slice(0, 500)).toBe("Unhandled");
  return returned(result) as { errorType: string; errorMessage: string };
}

/** Sends an event and returns the value; a function error fails the test. */
export async function ask(instance: Instance, event: unknown = {}): Promise<unknown> {
  const result = await instance.invoke(JSON.stringify(event));
  if (result.functionError !== undefined)
    throw new Error(`the function failed: ${result.payload.toString("utf8").slice(0, 2000)}`);
  return returned(result);
}

/** The ThawError that `promise` rejects with. */
export async function refusal(promise: Promise<unknown>): Promise<ThawError> {
  try {
    await promise;
  } catch (error) {
    if (isThawError(error)) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}
