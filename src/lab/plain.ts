/**
 * The plain interpreter doing the same as a boot: spawned by this process, no sandbox, the code loaded from the same
 * files, one request already waiting on its standard input. What boot is compared with, so that thaw's ratio to boot is not
 * flattered by a slow boot.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { nowUs } from "../base/clock.js";
import type { RuntimeInfo } from "../engine/types.js";
import { PACKAGE_ROOT } from "./environment.js";
import type { Arm } from "./interleave.js";
import { type StartSample, seedOf } from "./start-arms.js";
import { checkReply, type Workload } from "./workloads.js";

const plainFile = (name: string) => join(PACKAGE_ROOT, "src/lab/plain", name);

/** The arm that spawns `runtime`'s interpreter. */
export function plainArm(workload: Workload, runtime: RuntimeInfo): Arm<StartSample> {
  const [module = "", name = ""] = workload.handler.split(".");
  const args =
    workload.language === "node"
      ? [plainFile("plain.mjs"), workload.dir, `${module}.mjs`, name]
      : // The sandbox mounts code read-only; without -B the plain interpreter alone would profit from compiled files.
        ["-B", plainFile("plain.py"), workload.dir, module, name];
  return {
    name: "plain interpreter",
    async run(round) {
      const seed = seedOf(round);
      const event = JSON.stringify(workload.event(seed));
      const began = nowUs();
      const { line, endUs } = await runPlain(runtime.interpreter, args, event);
      checkReply(workload, seed, line);
      return { us: endUs - began, phases: [], poolUs: 0 };
    },
  };
}

/** Spawns, sends the event, waits for one line; the process is killed and reaped before this returns. */
async function runPlain(program: string, args: readonly string[], event: string): Promise<{ line: string; endUs: number }> {
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"] });
  const ended = once(child, "close");
  // Awaited below; a program that cannot be spawned rejects before that.
  ended.catch(() => {});
  let complaint = "";
  child.stderr.on("data", (chunk: Buffer) => {
    complaint = (complaint + chunk.toString()).slice(-2_000);
  });
  // An early end of the child shows in its exit code and its complaint.
  child.stdin.on("error", () => {});
  child.stdin.end(event);
  try {
    let text = "";
    for await (const chunk of child.stdout) {
      text += String(chunk);
      if (text.endsWith("\n")) return { line: text, endUs: nowUs() };
    }
    throw new Error(`${program} ended without a reply: ${complaint.trim() || "no message"}`);
  } finally {
    child.kill("SIGKILL");
    await ended;
  }
}
