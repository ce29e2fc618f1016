/**
 * The real server in a process of its own, as `thaw serve` starts it: from dist, on a free port, with its own data
 * directory. What it wrote is kept to explain a failure. Whatever a test forgets to stop is stopped after its file.
 */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { zipSync } from "fflate";
import { afterAll, beforeAll } from "vitest";
import type { FunctionView, MetricsView } from "../../src/gateway/index.js";
import { parseStartHeader } from "../../src/platform/start-header.js";
import type { ImageStatus } from "../../src/platform/types.js";
import { type Living, livingProcesses } from "./processes.js";
import { until } from "./wait.js";

export const ROOT = join(import.meta.dirname, "../..");
const CLI = join(ROOT, "bin/thaw.mjs");
const START_MS_MAX = 45_000;
const STOP_MS_MAX = 45_000;
const CLI_MS_MAX = 45_000;

/** One run of `thaw`, as a user sees it. */
export interface CliRun {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

/** A reply to an invocation. */
export interface Reply {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  /** The body; undefined when it is not JSON. */
  // biome-ignore lint/suspicious/noExplicitAny: replies of many functions, and tests assert what they read
  readonly json: any;
  /** X-Thaw-Start in parts, numbers as numbers; empty when there was none. */
  readonly start: Readonly<Record<string, string | number>>;
}

/** A function waits while this is there; see {@link TestServer.hold}. */
export const HOLD = "/var/task/hold";

/** Files of a function by path. */
export type Files = Readonly<Record<string, string>>;

/**
 * Asking every interpreter on a long PATH takes most of a server's start; the system's own are enough. Without a Python there,
 * all of the PATH is searched.
 */
function searchPath(): string {
  const system = [dirname(process.execPath), "/usr/bin", "/bin"].join(":");
  return existsSync("/usr/bin/python3") ? system : (process.env.PATH ?? system);
}

function environment(more: Readonly<Record<string, string>> = {}): NodeJS.ProcessEnv {
  const { THAW_URL: _url, THAW_FAULT: _fault, THAW_LOG: _log, ...rest } = process.env;
  return { ...rest, PATH: searchPath(), NO_COLOR: "1", ...more };
}

/** A temporary directory that is removed after the test file. */
export function temporaryDir(name: string): string {
  const dir = mkdtempSync(join(tmpdir(), `thaw-test-${name}-`));
  cleanups.push(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

const cleanups: (() => void)[] = [];
const running = new Set<TestServer>();

/** Builds what is out of date, once, and stops every server of the file at its end. */
export function useServers(): void {
  beforeAll(() => {
    if (!isStale()) return;
    const build = spawnSync(process.execPath, [join(ROOT, "scripts/build.mjs")], { encoding: "utf8", timeout: 110_000 });
    if (build.status !== 0) throw new Error(`the build failed: ${build.stdout}${build.stderr}`);
  }, 120_000);
  afterAll(async () => {
    // One that does not stop in order keeps no other from it.
    const stops = await Promise.allSettled([...running].map((server) => server.stop()));
    for (const cleanup of cleanups.splice(0)) cleanup();
    for (const stop of stops) if (stop.status === "rejected") throw stop.reason;
  }, 120_000);
}

/** Whether a source is newer than all that was built of its kind. */
function isStale(): boolean {
  if (!existsSync(join(ROOT, "dist/cli/main.js")) || !existsSync(join(ROOT, "native/build/keeper"))) return true;
  const newest = (dir: string, fits: RegExp): number => {
    let latest = 0;
    for (const entry of readdirSync(join(ROOT, dir), { withFileTypes: true })) {
      const path = join(dir, entry.name);
      if (entry.isDirectory()) latest = Math.max(latest, entry.name === "build" ? 0 : newest(path, fits));
      else if (fits.test(entry.name)) latest = Math.max(latest, statSync(join(ROOT, path)).mtimeMs);
    }
    return latest;
  };
  return (
    newest("src", /(?<!\.test)\.ts$/) > newest("dist", /\.js$/) || newest("native", /\.([ch]|ld)$/) > newest("native/build", /./)
  );
}

/** Runs one command to its end. */
export async function cli(
  args: readonly string[],
  options: { url?: string; cwd?: string; input?: string; env?: Readonly<Record<string, string>> } = {},
): Promise<CliRun> {
  const env = environment({ ...(options.url === undefined ? {} : { THAW_URL: options.url }), ...options.env });
  const child = spawn(process.execPath, [CLI, ...args], { cwd: options.cwd ?? ROOT, env, stdio: "pipe", timeout: CLI_MS_MAX });
  let out = "";
  let err = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    out += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    err += text;
  });
  // A command that needs no input may end before it is written.
  child.stdin.on("error", () => undefined).end(options.input ?? "");
  const [code] = (await once(child, "close")) as [number | null];
  return { code, out, err };
}

/** A running server. */
export class TestServer {
  readonly pid: number;
  url = "";
  output = "";
  readonly #child: ReturnType<typeof spawn>;
  readonly #exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;

  private constructor(
    readonly dataDir: string,
    args: readonly string[],
    env: Readonly<Record<string, string>>,
  ) {
    const line = [CLI, "serve", "--data", dataDir, "--port", "0", ...args];
    this.#child = spawn(process.execPath, line, { env: environment(env), stdio: ["ignore", "pipe", "pipe"] });
    this.pid = this.#child.pid ?? 0;
    for (const stream of [this.#child.stdout, this.#child.stderr])
      stream?.setEncoding("utf8").on("data", (text: string) => {
        this.output += text;
      });
    this.#exited = once(this.#child, "close").then(([code, signal]) => {
      running.delete(this);
      return { code: code as number | null, signal: signal as NodeJS.Signals | null };
    });
    running.add(this);
  }

  /** Starts one and waits until it listens. */
  static async start(
    dataDir: string,
    options: { args?: readonly string[]; env?: Readonly<Record<string, string>> } = {},
  ): Promise<TestServer> {
    const server = new TestServer(dataDir, options.args ?? [], options.env ?? {});
    server.url = await until(
      "the server to listen",
      () => {
        if (!server.alive) throw new Error(`the server did not start: ${server.output}`);
        return /thaw listens on (http:\S+) /.exec(server.output)?.[1];
      },
      START_MS_MAX,
    );
    return server;
  }

  get alive(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** The keeper that it started. */
  get keeper(): Living {
    const keeper = [...livingProcesses().values()].find(
      ({ parent, exe }) => parent === this.pid && exe.endsWith("/native/build/keeper"),
    );
    if (keeper === undefined) throw new Error("the server has no keeper");
    return keeper;
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** How it ended, by itself or by a signal that was sent before. */
  ended(): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
    return this.#exited;
  }

  /** Stops it in order; one that does not stop is killed, and that is an error. Idempotent. */
  async stop(): Promise<void> {
    if (this.alive) this.kill("SIGTERM");
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.kill("SIGKILL");
    }, STOP_MS_MAX);
    await this.#exited;
    clearTimeout(timer);
    if (late) throw new Error(`the server did not stop within ${STOP_MS_MAX} ms: ${this.output}`);
  }

  /** One request; a body that is not JSON is given as text. */
  async request(
    method: string,
    path: string,
    init: { headers?: Record<string, string>; body?: string | Uint8Array } = {},
  ): Promise<Reply> {
    const reply = await fetch(this.url + path, { method, ...(init as RequestInit) });
    const text = await reply.text();
    let json: unknown;
    try {
      json = JSON.parse(text);
    } catch {
      json = undefined;
    }
    return {
      status: reply.status,
      headers: reply.headers,
      text,
      json,
      start: parseStartHeader(reply.headers.get("x-thaw-start") ?? ""),
    };
  }

  /** `event` is sent as JSON; a string or bytes as they are. */
  invoke(name: string, event: unknown = {}, headers: Record<string, string> = {}): Promise<Reply> {
    const body = typeof event === "string" || event instanceof Uint8Array ? event : JSON.stringify(event);
    return this.request("POST", `/2015-03-31/functions/${encodeURIComponent(name)}/invocations`, { headers, body });
  }

  /** Over HTTP. Settings are those of the query: `memory`, `timeout`, `env`, … The default timeout is too short for a machine that is busy. */
  deploy(name: string, files: Files, settings: Readonly<Record<string, string>> = {}, method = "POST"): Promise<Reply> {
    const encoder = new TextEncoder();
    const zip = zipSync(Object.fromEntries(Object.entries(files).map(([path, text]) => [path, encoder.encode(text)])));
    const query = new URLSearchParams({ timeout: "30", ...settings }).toString();
    return this.request(method, `/thaw/v1/functions/${name}?${query}`, {
      body: zip,
      headers: { "content-type": "application/zip" },
    });
  }

  /** Deploys, and waits for the first image or for the reason why there is none. */
  async deployReady(name: string, files: Files, settings: Readonly<Record<string, string>> = {}): Promise<ImageStatus> {
    const reply = await this.deploy(name, files, settings);
    if (reply.status !== 201) throw new Error(`deploying ${name}: ${reply.status} ${reply.text}`);
    return this.ready(name);
  }

  async ready(name: string): Promise<ImageStatus> {
    const reply = await this.request("GET", `/thaw/v1/functions/${name}/ready?timeout=60`);
    if (reply.status !== 200) throw new Error(`image of ${name}: ${reply.status} ${reply.text}`);
    return reply.json as ImageStatus;
  }

  /** From now on, a function that looks for {@link HOLD} waits there, until what this returns is called. */
  async hold(name: string): Promise<() => void> {
    const { codeSha256 } = await this.view(name);
    const file = join(this.dataDir, "functions", name, Buffer.from(codeSha256, "base64").toString("hex"), "hold");
    writeFileSync(file, "");
    return () => rmSync(file, { force: true });
  }

  async view(name: string): Promise<FunctionView> {
    return (await this.request("GET", `/thaw/v1/functions/${name}`)).json as FunctionView;
  }

  async list(): Promise<FunctionView[]> {
    return ((await this.request("GET", "/thaw/v1/functions")).json as { functions: FunctionView[] }).functions;
  }

  async metrics(): Promise<MetricsView> {
    return (await this.request("GET", "/thaw/v1/metrics")).json as MetricsView;
  }

  cli(
    args: readonly string[],
    options: { cwd?: string; input?: string; env?: Readonly<Record<string, string>> } = {},
  ): Promise<CliRun> {
    return cli(args, { ...options, url: this.url });
  }
}
