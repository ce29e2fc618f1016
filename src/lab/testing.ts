/** For tests of the laboratory: workloads called without thaw, and one that any engine can answer. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Language, Workload } from "./workloads.js";

/** Calls a workload's handler with each event in one plain interpreter; its replies, one JSON text for each. */
export async function callPlain(
  dir: string,
  language: Language,
  events: readonly object[],
  env: NodeJS.ProcessEnv = process.env,
): Promise<string[]> {
  const text = JSON.stringify(events);
  const script =
    language === "node"
      ? `const { handler } = await import(process.argv[1]); for (const e of JSON.parse(process.argv[2])) console.log(JSON.stringify(await handler(e, {})));`
      : "import sys, json; sys.path.insert(0, sys.argv[1]); import app\nfor e in json.loads(sys.argv[2]): print(json.dumps(app.handler(e, None)))";
  const [program, args] =
    language === "node"
      ? [process.execPath, ["--input-type=module", "-e", script, join(dir, "index.mjs"), text]]
      : ["python3.11", ["-B", "-c", script, dir, text]];
  const { stdout } = await promisify(execFile)(program, args as string[], { timeout: 60_000, env });
  return stdout.trim().split("\n");
}

/** A function that must answer with its event. */
export function echoWorkload(dir: string): Workload {
  return {
    name: "echo",
    language: "node",
    dir,
    handler: "index.handler",
    memoryMb: 128,
    event: (seed) => ({ seed }),
    reply: (seed) => ({ seed }),
  };
}
