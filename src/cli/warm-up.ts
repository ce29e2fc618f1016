/**
 * Where the warm-up events of a deploy come from: a file named on the command line, a list in `thaw.json`, or a script in the
 * function's folder that prints them.
 *
 * The script runs here, on the machine of whoever deploys and as them, not in a sandbox: it is theirs, like the scripts of a
 * `package.json`, and may read what it needs to make events like those of real users. It is bounded all the same, so that a deploy
 * ends: 60 s and 1 MiB of output, after which it is killed with every process of its group.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { constants } from "node:fs";
import { access, realpath, stat } from "node:fs/promises";
import { extname, join, sep } from "node:path";
import { errorText, ThawError } from "../base/errors.js";
import { formatBytes, MIB } from "../base/units.js";
import { WARM_UP_BYTES_MAX } from "../gateway/index.js";
import type { WarmUp } from "../platform/types.js";
import { Interrupted, type Io, readFileUpTo, withoutMark } from "./io.js";

/** Of a file that holds events: they have a megabyte at most, and may be written with room between them. */
export const EVENTS_TEXT_BYTES_MAX = 16 * MIB;
/** How long a script may run. */
const SCRIPT_MS_MAX = 60_000;
/** How much it may print, errors included. */
const SCRIPT_BYTES_MAX = MIB;
/** After its end, how long to wait for whoever left its group with its output still open. */
const OUTPUT_GRACE_MS = 1_000;

const PYTHON = "python3";

/** Bounds of a script; tests use smaller ones. */
export interface ScriptLimits {
  readonly ms: number;
  readonly bytes: number;
}

/** How `thaw.json` declares warm-up. */
export type WarmUpSource =
  | readonly unknown[]
  | { readonly events: readonly unknown[]; readonly requests?: number | undefined }
  | { readonly script: string; readonly requests?: number | undefined };

/** The file of the package that is not part of it, because only the deploy uses it; undefined without a script. */
export function scriptOf(source: WarmUpSource | undefined): string | undefined {
  return source !== undefined && "script" in source ? join(source.script) : undefined;
}

/** What a source comes to. INVALID_ARGUMENT. */
export async function warmUpFrom(io: Io, folder: string, source: WarmUpSource): Promise<WarmUp> {
  if (!("script" in source) && !("events" in source)) return checked("thaw.json", source);
  const { requests } = source;
  const events = "script" in source ? await runScript(io, folder, source.script) : source.events;
  const warmUp = checked("script" in source ? source.script : "thaw.json", events);
  return { ...warmUp, ...(requests === undefined ? {} : { requests }) };
}

/** Events of a file: a JSON list, or one JSON value a line when it is called `.jsonl`. INVALID_ARGUMENT. */
export async function readEvents(io: Io, path: string): Promise<WarmUp> {
  const bytes = await readFileUpTo(path, EVENTS_TEXT_BYTES_MAX, io.stop).catch((error: unknown) => {
    if (error instanceof Interrupted) throw error;
    throw unusable(`${path} cannot be read: ${errorText(error)}`, "Check --warm-up", error);
  });
  if (bytes.length > EVENTS_TEXT_BYTES_MAX)
    throw unusable(`${path} has more than ${formatBytes(EVENTS_TEXT_BYTES_MAX)}`, "Give fewer or smaller events");
  const text = withoutMark(bytes).toString();
  if (path.endsWith(".jsonl")) return checked(path, parseLines(path, text));
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw unusable(`${path} is not JSON: ${errorText(error)}`, "A file with one event a line must be called .jsonl", error);
  }
  if (Array.isArray(value)) return checked(path, value);
  throw unusable(`${path} holds no list`, "Put the events into [ ], or one on each line of a file called .jsonl");
}

/** Refuses what the server would, before anything is sent. */
function checked(from: string, events: readonly unknown[]): WarmUp {
  if (events.length === 0) throw unusable(`${from} gives no event`, "Give at least one, or leave warm-up out");
  const bytes = Buffer.byteLength(textOf(from, events));
  if (bytes <= WARM_UP_BYTES_MAX) return { events };
  throw unusable(
    `those of ${from} have ${formatBytes(bytes)}, and the limit is ${formatBytes(WARM_UP_BYTES_MAX)}`,
    "Give fewer or smaller ones: they are replayed in turn, as often as it takes",
  );
}

/** What is read without end can be nested so deeply that it cannot be written. */
function textOf(from: string, events: readonly unknown[]): string {
  try {
    return JSON.stringify(events);
  } catch (error) {
    throw unusable(`those of ${from} are nested too deeply`, "Give flatter ones", error);
  }
}

/** One JSON value a line; empty lines are skipped. */
function parseLines(from: string, text: string): unknown[] {
  return text.split("\n").flatMap((line, index) => {
    if (line.trim() === "") return [];
    try {
      return [JSON.parse(line) as unknown];
    } catch (error) {
      throw unusable(`line ${index + 1} of ${from} is not JSON: ${errorText(error)}`, "Give one JSON value a line", error);
    }
  });
}

/** Runs a script of the folder and returns the events that it printed, one JSON value a line. Its stderr is shown. INVALID_ARGUMENT. */
export async function runScript(
  io: Io,
  folder: string,
  script: string,
  limits: ScriptLimits = { ms: SCRIPT_MS_MAX, bytes: SCRIPT_BYTES_MAX },
): Promise<unknown[]> {
  const [program, ...args] = await commandOf(folder, script);
  if (io.stop.aborted) throw new Interrupted();
  const ended = await watch(io, start(folder, program, args, io), limits);
  if (ended.stopped === "interrupted") throw new Interrupted();
  const why = reasonOf(ended, limits, program);
  if (why !== undefined)
    throw unusable(`${script} ${why}`, "Run it by hand in the function's folder, and correct it", ended.error);
  return parseLines(`what ${script} printed`, ended.out.toString("utf8"));
}

function start(folder: string, program: string, args: readonly string[], io: Io): ChildProcess {
  try {
    return spawn(program, args, {
      cwd: folder,
      env: { ...io.env },
      stdio: ["ignore", "pipe", "pipe"],
      // A group of its own, so that nothing it started outlives the deploy.
      detached: true,
    });
  } catch (error) {
    // Most errors come as an event, a few at once (E2BIG for a large environment).
    throw unusable(`${program} cannot be run: ${errorText(error)}`, "Run it by hand in the function's folder", error);
  }
}

/** The command line of a script. */
async function commandOf(folder: string, script: string): Promise<[string, ...string[]]> {
  const root = await realpath(folder);
  const path = await realpath(join(folder, script)).catch((error: unknown) => {
    throw unusable(`${script} cannot be run: ${errorText(error)}`, "Name a file in the function's folder", error);
  });
  if (!path.startsWith(root + sep)) throw unusable(`${script} is outside the function's folder`, "Name a file inside it");
  if (!(await stat(path)).isFile()) throw unusable(`${script} is not a file`, "Name a file in the function's folder");
  const extension = extname(path);
  if ([".mjs", ".js", ".cjs"].includes(extension)) return [process.execPath, path];
  if (extension === ".py") return [PYTHON, path];
  await access(path, constants.X_OK).catch((error: unknown) => {
    throw unusable(
      `${script} is neither a .mjs, .js, .cjs or .py file nor executable`,
      "Make it executable (chmod +x), with the interpreter in its first line",
      error,
    );
  });
  return [path];
}

/** How a script ended. */
interface Ended {
  readonly out: Buffer;
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** What made us kill it. */
  readonly stopped: "time" | "output" | "interrupted" | undefined;
  /** It could not be started. */
  readonly error: NodeJS.ErrnoException | undefined;
}

/** Collects what a child prints until it and its group are gone. */
function watch(io: Io, child: ChildProcess, limits: ScriptLimits): Promise<Ended> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  let stopped: Ended["stopped"];
  let error: NodeJS.ErrnoException | undefined;
  let grace: NodeJS.Timeout | undefined;
  const killGroup = (): void => {
    if (child.pid === undefined) return;
    try {
      process.kill(-child.pid, "SIGKILL");
    } catch (failure) {
      // Nobody is left in the group.
      if ((failure as NodeJS.ErrnoException).code !== "ESRCH") throw failure;
    }
  };
  const stop = (why: Ended["stopped"]): void => {
    stopped ??= why;
    killGroup();
  };
  const interrupt = (): void => stop("interrupted");
  io.stop.addEventListener("abort", interrupt, { once: true });
  const timer = setTimeout(() => stop("time"), limits.ms);
  /** Whether there is room for `more` bytes. */
  const taken = (more: number): boolean => {
    bytes += more;
    if (bytes > limits.bytes) stop("output");
    return bytes <= limits.bytes;
  };
  child.stdout?.on("data", (chunk: Buffer) => taken(chunk.length) && chunks.push(chunk));
  child.stderr?.setEncoding("utf8").on("data", (text: string) => taken(Buffer.byteLength(text)) && io.err(text));
  child.once("exit", () => {
    clearTimeout(timer);
    // What it left running ends with it, and with that its output does.
    killGroup();
    grace = setTimeout(() => {
      child.stdout?.destroy();
      child.stderr?.destroy();
    }, OUTPUT_GRACE_MS);
  });
  return new Promise((done) => {
    child.once("error", (failure) => {
      error = failure;
    });
    child.once("close", (code, signal) => {
      clearTimeout(timer);
      clearTimeout(grace);
      io.stop.removeEventListener("abort", interrupt);
      done({ out: Buffer.concat(chunks), code, signal, stopped, error });
    });
  });
}

/** What is wrong with how a script ended; undefined when nothing is. */
function reasonOf({ stopped, error, signal, code }: Ended, limits: ScriptLimits, program: string): string | undefined {
  if (error?.code === "ENOENT")
    return `needs ${program === PYTHON ? PYTHON : "the interpreter in its first line"}, which is not found`;
  if (error !== undefined) return `cannot be run: ${error.message}`;
  if (stopped === "time") return `did not end within ${limits.ms / 1000} s`;
  if (stopped === "output") return `printed more than ${formatBytes(limits.bytes)}`;
  if (signal !== null) return `was ended by ${signal}`;
  return code === 0 ? undefined : `exited with ${code}`;
}

function unusable(why: string, fix: string, cause?: unknown): ThawError {
  return new ThawError("INVALID_ARGUMENT", { what: "The warm-up events cannot be used", why, fix, cause });
}
