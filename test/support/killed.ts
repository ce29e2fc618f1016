/** A server that is killed in the middle of what it does to an instance: an engine in a process of its own, and a fault point. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { expect } from "vitest";
import type { FaultPoint } from "../../src/base/fault.js";
import type { FunctionSpec } from "../../src/engine/index.js";
import { descendants, isAlive, type Living, livingProcesses } from "./processes.js";
import { ROOT } from "./server.js";
import { until } from "./wait.js";

/** Boots the function and takes `steps` with `instance`, at one of which it is killed. The function has ended then; returned is what else it had started. */
export async function killedAt(point: FaultPoint, dataDir: string, spec: FunctionSpec, steps: string): Promise<Living[]> {
  const script = `
    import { openEngine } from ${JSON.stringify(join(ROOT, "dist/engine/index.js"))};
    const engine = await openEngine({ dataDir: ${JSON.stringify(dataDir)} });
    const instance = await engine.boot(${JSON.stringify(spec)});
    console.log("pid " + instance.hostPid);
    await new Promise((resolve) => process.stdin.once("data", resolve));
    ${steps}
    console.log("nobody killed it");`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
    env: { ...process.env, THAW_FAULT: point },
    stdio: ["pipe", "pipe", "inherit"],
  });
  let out = "";
  const closed = once(child, "close");
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    out += text;
  });
  const pid = await until("its function", () => Number(/pid (\d+)\n/.exec(out)?.[1]) || undefined);
  const living = livingProcesses().get(pid);
  if (living === undefined) throw new Error("its function does not live");
  const helpers = descendants(child.pid ?? 0);
  child.stdin.on("error", () => undefined).write("go on\n");
  const [, signal] = (await closed) as [number | null, string | null];
  expect([signal, out]).toEqual(["SIGKILL", expect.not.stringContaining("nobody")]);
  await until("its function to end", () => !isAlive(living) || undefined);
  return helpers;
}
