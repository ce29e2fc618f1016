/**
 * What the tests on the real kernel share: an engine on a data directory of its own, and functions whose steps are called by
 * name. The functions are ordinary files in test/fixtures; a step answers with plain data, and the test says what it must be.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll } from "vitest";
import {
  type Engine,
  type EngineOptions,
  type FunctionSpec,
  type Image,
  type Instance,
  openEngine,
} from "../../src/engine/index.js";

export { hostPid } from "../../src/lab/process-memory.js";

export type Language = "node" | "python";
export const LANGUAGES: readonly Language[] = ["node", "python"];

const FIXTURES = join(import.meta.dirname, "../fixtures");
const RUNTIME_PREFIX: Readonly<Record<Language, string>> = { node: "nodejs", python: "python3" };

/** Calls one step of a fixture: `module.function`. Rejects with what the function says when it fails. */
export async function call<T = unknown>(instance: Instance, step: string, ...args: unknown[]): Promise<T> {
  const result = await instance.invoke(JSON.stringify({ step, args }));
  if (result.functionError === undefined) return JSON.parse(result.payload.toString("utf8")) as T;
  throw new Error(
    `${step}: ${result.platformError ?? "error"}: ${result.payload.toString("utf8")} ${result.logs.toString("utf8")}`,
  );
}

/** An engine for one test file, closed after it together with everything that it started. */
export class World {
  engine!: Engine;
  #root: string | undefined;

  constructor(private readonly options: Omit<EngineOptions, "dataDir"> = {}) {}

  /** All that a test leaves on disk is below it. */
  get root(): string {
    this.#root ??= mkdtempSync(join(tmpdir(), "thaw-test-"));
    return this.#root;
  }

  get dataDir(): string {
    return join(this.root, "data");
  }

  async open(): Promise<void> {
    this.engine = await openEngine({ dataDir: this.dataDir, ...this.options });
  }

  /** Another engine on the same data, as after a restart of the server. */
  async reopen(): Promise<void> {
    await this.engine.close();
    await this.open();
  }

  /** Closes the engine and removes its data. */
  async end(): Promise<void> {
    await this.engine?.close();
    rmSync(this.root, { recursive: true, force: true });
  }

  /** The fixture functions of a language. */
  spec(language: Language, more: Partial<FunctionSpec> = {}): FunctionSpec {
    return this.specOf(language, join(FIXTURES, language), { name: `fixtures-${language}`, memoryMb: 1024, ...more });
  }

  /** A function of that language whose code lies there. */
  protected specOf(language: Language, codeDir: string, more: Partial<FunctionSpec>): FunctionSpec {
    const runtime = this.engine.runtimes.find(({ id }) => id.startsWith(RUNTIME_PREFIX[language]));
    if (runtime === undefined) throw new Error(`this machine has no ${language}`);
    return {
      name: `test-${language}`,
      version: "1",
      runtime: runtime.id,
      codeDir,
      handler: "index.handler",
      memoryMb: 256,
      timeoutMs: 30_000,
      env: {},
      tmpMb: 512,
      ...more,
    };
  }

  boot(language: Language, more: Partial<FunctionSpec> = {}): Promise<Instance> {
    return this.engine.boot(this.spec(language, more));
  }

  /** Boots, runs the steps, freezes, and hands the image on; the frozen instance has ended by then. */
  async imageAfter(language: Language, ...steps: (string | readonly [string, ...unknown[]])[]): Promise<Image> {
    return await withInstance(this.boot(language), async (instance) => {
      for (const step of steps) {
        if (typeof step === "string") await call(instance, step);
        else await call(instance, step[0], ...step.slice(1));
      }
      return await instance.freeze({ then: "end" });
    });
  }

  /** Thaws for as long as `use` takes. */
  async thawed<T>(image: Image, use: (clone: Instance) => Promise<T>, options: Parameters<Engine["thaw"]>[1] = {}): Promise<T> {
    return await withInstance(this.engine.thaw(image, options), use);
  }

  /** Names in the directory of images: whole ones and leftovers alike. */
  imageNames(): string[] {
    return readdirSync(join(this.dataDir, "images")).sort();
  }
}

/** Has a world while the tests of a file run. */
export function opened<W extends World>(world: W): W {
  beforeAll(() => world.open());
  afterAll(() => world.end());
  return world;
}

/** A world for all tests of a file. */
export function useWorld(): World {
  return opened(new World());
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

/** How many mappings a process has. */
export function mappingCount(pid: number): number {
  return readFileSync(`/proc/${pid}/maps`, "utf8").trimEnd().split("\n").length;
}
