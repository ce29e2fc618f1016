/**
 * The functions that are measured, with what each must answer: a start that answers wrongly is a failed run, not a
 * fast one. Their code lies in `workloads/` beside the source of this file, as plain JavaScript and Python.
 */
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { ThawError } from "../base/errors.js";
import type { FunctionSpec, RuntimeInfo } from "../engine/types.js";
import { PACKAGE_ROOT } from "./environment.js";

export type Language = "node" | "python";

/** A function that is measured. */
export interface Workload {
  readonly name: string;
  readonly language: Language;
  readonly dir: string;
  readonly handler: string;
  readonly memoryMb: number;
  /** The event of a round. It varies with the round, so that no start can answer from memory of another. */
  event(seed: number): object;
  /** The only right reply. */
  reply(seed: number): unknown;
}

export const codeDir = (name: string) => join(PACKAGE_ROOT, "src/lab/workloads", name);
const RUNTIME_PREFIX: Readonly<Record<Language, string>> = { node: "nodejs", python: "python3" };
export const HANDLER: Readonly<Record<Language, string>> = { node: "index.handler", python: "app.handler" };

function workload(
  name: string,
  language: Language,
  memoryMb: number,
  event: Workload["event"],
  reply: Workload["reply"],
): Workload {
  return { name, language, dir: codeDir(name), handler: HANDLER[language], memoryMb, event, reply };
}

const greeting = (seed: number) => ({ greeting: "hello lab", seed });
const hello = (seed: number) => ({ name: "lab", seed });

/** What both index workloads compute: 100 lookups spread over `count` objects. */
function lookups(count: number) {
  return (seed: number) => {
    let sum = 0;
    for (let step = 0; step < 100; step++) {
      const id = (seed * 104_729 + step * 1_999) % count;
      sum += ((id * 7_919) % 10_007) + (id % 13);
    }
    return { count, seed, sum };
  };
}

/** The canonical workloads: the same in every section that compares starts. */
export const WORKLOADS = {
  node80: workload("node-80mb", "node", 512, (seed) => ({ seed }), lookups(200_000)),
  python40: workload("python-40mb", "python", 512, (seed) => ({ seed }), lookups(100_000)),
  helloNode: workload("hello-node", "node", 256, hello, greeting),
  helloPython: workload("hello-python", "python", 256, hello, greeting),
} as const;

/** The engine's runtime for a language; RUNTIME_MISSING when this machine has none. */
export function runtimeFor(runtimes: readonly RuntimeInfo[], language: Language): RuntimeInfo {
  const found = runtimes.find(({ id }) => id.startsWith(RUNTIME_PREFIX[language]));
  if (found !== undefined) return found;
  throw new ThawError("RUNTIME_MISSING", {
    what: `The ${language} workloads cannot run`,
    why: `the engine has only ${runtimes.map(({ id }) => id).join(", ") || "no runtime"}`,
    fix: "Install the interpreter; `thaw doctor` says which are found",
  });
}

/** The spec of a workload, named for its directory. */
export function specOf(
  { name, language, dir, handler, memoryMb }: Pick<Workload, "name" | "language" | "dir" | "handler" | "memoryMb">,
  runtimes: readonly RuntimeInfo[],
): FunctionSpec {
  return {
    name,
    version: "1",
    runtime: runtimeFor(runtimes, language).id,
    codeDir: dir,
    handler,
    memoryMb,
    timeoutMs: 20_000,
    env: {},
    tmpMb: 512,
  };
}

/** Throws unless `payload` is the right reply for the seed. */
export function checkReply({ name, reply }: Pick<Workload, "name" | "reply">, seed: number, payload: Buffer | string): void {
  const text = payload.toString();
  const expected = reply(seed);
  let got: unknown;
  try {
    got = JSON.parse(text);
  } catch {
    throw new Error(`wrong reply of ${name}: not JSON: ${text.slice(0, 200)}`);
  }
  if (!isDeepStrictEqual(got, expected)) {
    throw new Error(`wrong reply of ${name}: ${text.slice(0, 200)} instead of ${JSON.stringify(expected).slice(0, 200)}`);
  }
}
