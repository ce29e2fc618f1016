/** What the tests of the sandbox, of bad functions and of damaged images share: an engine in a directory of its own, and small functions. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect } from "vitest";
import { isThawError, type ThawError } from "../src/base/errors.js";
import { type Engine, type FunctionSpec, type Image, type Instance, type InvokeResult, openEngine } from "../src/engine/index.js";

/** Long enough for a machine whose two processors do something else. */
const SETTLE_MS = 30_000;

/** An engine without pooled husks, so that whatever lives in a cgroup of its own was started by the test. */
export class Bench {
  readonly root = mkdtempSync(join(tmpdir(), "thaw-bad-"));
  readonly dataDir: string;
  engine!: Engine;
  private functions = 0;

  constructor(dataDir?: string) {
    this.dataDir = dataDir ?? join(this.root, "data");
  }

  async open(): Promise<this> {
    this.engine = await openEngine({ dataDir: this.dataDir, sharedRuntime: true });
    this.engine.pool({ generic: 0 });
    return this;
  }

  async close(): Promise<void> {
    await this.engine.close();
    rmSync(this.root, { recursive: true, force: true });
  }

  /** Another engine on the same data, as after a restart of the server. */
  async reopen(): Promise<void> {
    await this.engine.close();
    await this.open();
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
    return this.spec("nodejs", { "index.js": source }, overrides);
  }

  /** A Python function from the text of its module. */
  python(source: string, overrides: Partial<FunctionSpec> = {}): FunctionSpec {
    return this.spec("python", { "index.py": source }, overrides);
  }

  private spec(language: string, files: Readonly<Record<string, string>>, overrides: Partial<FunctionSpec>): FunctionSpec {
    const runtime = this.engine.runtimes.find(({ id }) => id.startsWith(language));
    if (runtime === undefined) throw new Error(`these tests need a ${language} interpreter`);
    return {
      name: `test-${language}`,
      version: "1",
      runtime: runtime.id,
      codeDir: this.code(files),
      handler: "index.handler",
      memoryMb: 256,
      timeoutMs: 30_000,
      env: {},
      tmpMb: 512,
      ...overrides,
    };
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
  const bench = new Bench();
  beforeAll(() => bench.open());
  afterAll(() => bench.close());
  return bench;
}

/** Repeats an expectation until it holds. */
export async function eventually(check: () => void, withinMs = SETTLE_MS): Promise<void> {
  const end = Date.now() + withinMs;
  for (;;) {
    try {
      check();
      return;
    } catch (error) {
      if (Date.now() > end) throw error;
    }
    await sleep(20);
  }
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

/** Runs `body` with the instance and disposes it. */
export async function withInstance<T>(starting: Promise<Instance>, body: (instance: Instance) => Promise<T>): Promise<T> {
  const instance = await starting;
  try {
    return await body(instance);
  } finally {
    await instance.dispose();
  }
}
