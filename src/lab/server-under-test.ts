/**
 * A real server in a process of its own, driven as a user would: `thaw serve` on an ephemeral port with a data directory
 * of its own, `thaw deploy --wait`. Readiness is raced against an early exit, and what the server wrote is kept to
 * explain a failure.
 */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { promisify } from "node:util";
import { ThawError } from "../base/errors.js";
import type { EngineStats, StartKind } from "../engine/types.js";
import { within } from "./bounded.js";
import { PACKAGE_ROOT } from "./environment.js";
import { HttpConnection } from "./http-connection.js";
import type { Lab } from "./lab.js";

const CLI = join(PACKAGE_ROOT, "bin/thaw.mjs");
const START_MS_MAX = 30_000;
const DEPLOY_MS_MAX = 60_000;
const STOP_MS_MAX = 15_000;
const OUTPUT_KEPT = 4_000;

export interface Server {
  readonly url: string;
  /** Deploys a directory and waits for its image. */
  deploy(dir: string, name: string, options?: readonly string[]): Promise<void>;
  /** What the server counts: starts by kind, instances, the engine's pools. */
  metrics(): Promise<ServerMetrics>;
  /** Stops it in an orderly way; a server that does not stop is killed, and that is an error. Idempotent. */
  stop(): Promise<void>;
}

export interface ServerMetrics {
  readonly starts: Readonly<Record<StartKind, number>>;
  readonly instances: { readonly running: number; readonly idle: number };
  readonly engine: EngineStats;
}

/** Starts a server; it is stopped by `lab.cleanup` at the latest. */
export async function startServer(lab: Pick<Lab, "cleanup" | "makeDir">, options: readonly string[]): Promise<Server> {
  const args = [CLI, "serve", "--data", lab.makeDir("server"), "--port", "0", ...options];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  const exited = once(child, "exit");
  let stopped: Promise<void> | undefined;
  const stop = () => {
    stopped ??= stopChild();
    return stopped;
  };
  const stopChild = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGTERM");
    try {
      await within(exited, STOP_MS_MAX, "the server's stop");
    } catch (error) {
      child.kill("SIGKILL");
      await exited;
      throw error;
    }
  };
  const done = lab.cleanup.add("stopping the server", stop);

  const url = await within(
    new Promise<string>((resolve, reject) => {
      const onOutput = (chunk: Buffer) => {
        output = (output + chunk.toString()).slice(-OUTPUT_KEPT);
        const found = /thaw listens on (http:\/\/[\w.:[\]]+)/.exec(output);
        if (found?.[1] !== undefined) resolve(found[1]);
      };
      child.stdout.on("data", onOutput);
      child.stderr.on("data", onOutput);
      child.once("error", reject);
      child.once("exit", (code, signal) => reject(serverFailed(`it ended with ${signal ?? `exit code ${code}`}`, output)));
    }),
    START_MS_MAX,
    "the server's start",
  );
  return {
    url,
    deploy: async (dir, name, more = []) => {
      await runCli(["deploy", dir, "--name", name, "--wait", "--url", url, ...more], DEPLOY_MS_MAX);
    },
    metrics: () => metricsAt(url),
    async stop() {
      await stop();
      done();
    },
  };
}

/** One run of the CLI; throws with what it said when it fails. */
async function runCli(args: readonly string[], msMax: number): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [CLI, ...args], { timeout: msMax });
    return stdout;
  } catch (error) {
    const { stderr = "", stdout = "" } = error as { stderr?: string; stdout?: string };
    throw new Error(`thaw ${args[0]} failed: ${`${stderr}${stdout}`.trim() || String(error)}`, { cause: error });
  }
}

async function metricsAt(url: string): Promise<ServerMetrics> {
  const connection = await HttpConnection.open(url);
  try {
    return await metricsOf(connection);
  } finally {
    connection.close();
  }
}

/** What the server at the other end of `connection` counts. */
export async function metricsOf(connection: HttpConnection): Promise<ServerMetrics> {
  const { status, body } = await connection.request({ method: "GET", path: "/thaw/v1/metrics" });
  if (status !== 200) throw new Error(`GET metrics: status ${status}: ${body.toString("utf8", 0, 300)}`);
  return JSON.parse(body.toString()) as ServerMetrics;
}

function serverFailed(why: string, output: string): ThawError {
  return new ThawError("SERVER_UNREACHABLE", {
    what: "The server for this measurement did not start",
    why: `${why}; it said: ${output.trim() || "nothing"}`,
    fix: "`thaw doctor` says what this machine lacks",
  });
}
