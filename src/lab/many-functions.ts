/**
 * Many distinct small functions on one platform, Node and Python in turn, deployed as a user would: each has code of its own and answers with its own
 * number, so that no function can answer for another.
 */
import { zipSync } from "fflate";
import { nowMs } from "../base/clock.js";
import { errorText } from "../base/errors.js";
import { openEngine } from "../engine/index.js";
import { openPlatform, type Platform, type PlatformOptions } from "../platform/index.js";
import { atOnce } from "./crowd.js";
import type { FailedRun } from "./interleave.js";
import type { Lab } from "./lab.js";

const DEPLOYS_AT_ONCE = 8;
const READY_MS_MAX = 120_000;

/** Runs `use` with a platform of its own, and closes it whatever happens. `dataDir` is where everything of it lies. */
export async function withPlatform<T>(
  lab: Lab,
  options: Omit<PlatformOptions, "dataDir" | "engine">,
  use: (platform: Platform, dataDir: string) => Promise<T>,
  sharedRuntime = false,
): Promise<T> {
  const dataDir = lab.makeDir("platform");
  const engine = await openEngine({ dataDir, sharedRuntime });
  const doneEngine = lab.cleanup.add("closing the engine", () => engine.close());
  try {
    const platform = await openPlatform({ dataDir, engine, drainMs: 1_000, ...options });
    const done = lab.cleanup.add("closing the platform", () => platform.close());
    try {
      return await use(platform, dataDir);
    } finally {
      await platform.close();
      done();
    }
  } finally {
    await engine.close();
    doneEngine();
  }
}

/** In order of the index also when sorted by name. */
export function functionName(index: number): string {
  return `many-${String(index).padStart(6, "0")}`;
}

/** The package of one function. */
export function packageOf(index: number): Uint8Array {
  const [file, code] =
    index % 2 === 0
      ? ["index.mjs", `export const handler = async (event) => ({ function: ${index}, seed: event.seed });\n`]
      : ["app.py", `def handler(event, context):\n    return {"function": ${index}, "seed": event["seed"]}\n`];
  return zipSync({ [file as string]: new TextEncoder().encode(code) });
}

/** Throws unless function `index` answered this seed itself. */
export function checkMany(index: number, seed: number, payload: Buffer): void {
  const { function: got, seed: gotSeed } = JSON.parse(payload.toString()) as { function: number; seed: number };
  if (got !== index || gotSeed !== seed)
    throw new Error(`function ${index}, seed ${seed}, answered ${payload.toString().slice(0, 200)}`);
}

/** What became of many deploys. */
export interface Deployed {
  /** Of the functions that have their image, by rising number. */
  readonly indices: readonly number[];
  readonly seconds: number;
  readonly failures: readonly FailedRun[];
  /** Why there are fewer than wanted. */
  readonly cutShort?: string;
}

/** Deploys functions 0 … `count` - 1 and waits for the image of each; `stop` says why no other one shall be deployed. */
export async function deployMany(
  lab: Pick<Lab, "progress">,
  platform: Pick<Platform, "deploy" | "waitReady">,
  count: number,
  stop: () => string | undefined,
): Promise<Deployed> {
  const began = nowMs();
  const failures: FailedRun[] = [];
  const indices: number[] = [];
  let cutShort: string | undefined;
  await atOnce(count, DEPLOYS_AT_ONCE, async (index) => {
    cutShort ??= stop();
    if (cutShort !== undefined) return;
    try {
      await platform.deploy({ name: functionName(index), zip: packageOf(index), timeoutMs: 20_000 });
      const { state, reason } = await platform.waitReady(functionName(index), { timeoutMs: READY_MS_MAX });
      if (state !== "ready") throw new Error(`its image is ${state}: ${reason ?? "no reason given"}`);
      indices.push(index);
    } catch (error) {
      failures.push({ round: index, error: errorText(error) });
      if (failures.length > 20) cutShort ??= "more than 20 deploys failed";
    }
    lab.progress(`deployed ${indices.length} of ${count}`);
  });
  const seconds = (nowMs() - began) / 1000;
  return { indices: indices.sort((a, b) => a - b), seconds, failures, ...(cutShort === undefined ? {} : { cutShort }) };
}
