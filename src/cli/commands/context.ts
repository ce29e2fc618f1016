/** What every command gets, and the options that the client commands share. */
import type { Command } from "commander";
import { ThawError } from "../../base/errors.js";
import type { EngineOptions } from "../../engine/index.js";
import type { Engine } from "../../engine/types.js";
import type { MachineReport } from "../../linux/doctor.js";
import { Client, DEFAULT_URL } from "../client.js";
import type { Io } from "../io.js";

/** Opens an engine in a data directory. `onLost` is called when it can start no instance any more. */
export type OpenEngine = (options: EngineOptions) => Promise<Engine>;

/** Parts loaded only by the commands that need them: `thaw ls` must not pay for an engine. Tests pass others. */
export interface Parts {
  probeMachine(dataDir: string): Promise<MachineReport>;
  openEngine: OpenEngine;
}

/** Of every command. */
export interface Context {
  readonly io: Io;
  readonly parts: Parts;
}

/** Of the commands that talk to a server. */
export interface ClientOptions {
  readonly url?: string;
  readonly json?: boolean;
}

/** Adds `--url` and `--json`. */
export function asClient(command: Command): Command {
  return command
    .option("--url <url>", `the server (default: THAW_URL, else ${DEFAULT_URL})`)
    .option("--json", "print JSON, for machines");
}

/** The server that options and environment name. */
export function clientOf(io: Io, options: ClientOptions): Client {
  return new Client(options.url ?? (io.env.THAW_URL || DEFAULT_URL), io.stop);
}

/** The control route of a function. FUNCTION_NOT_FOUND for a name that no route can have. */
export function functionPath(name: string, rest = ""): string {
  return `/thaw/v1/functions/${nameInPath(name)}${rest}`;
}

/** A name or an ARN as a part of a path. FUNCTION_NOT_FOUND for what can be none. */
export function nameInPath(name: string): string {
  // A URL has these for directories, and would be that of another route.
  if (name === "." || name === "..") {
    const why = "A name has 1 to 64 letters, digits, hyphens and underscores";
    throw new ThawError("FUNCTION_NOT_FOUND", { what: `There is no function "${name}"`, why, fix: "See `thaw ls`" });
  }
  return encodeURIComponent(name);
}

/** One JSON value on a line. */
export function jsonLine(value: unknown): string {
  return `${JSON.stringify(value)}\n`;
}

/** Says on a terminal what goes on while `work` does, and takes it back. `work` may say something else. */
export async function withProgress<T>(
  io: Io,
  options: ClientOptions,
  says: string,
  work: (say: (text: string) => void) => Promise<T>,
): Promise<T> {
  const shown = io.interactive && options.json !== true;
  let last = "";
  const say = (text: string): void => {
    if (!shown || text === last) return;
    io.err(`${last === "" ? "" : CLEARED}${text}`);
    last = text;
  };
  say(says);
  try {
    return await work(say);
  } finally {
    if (shown) io.err(CLEARED);
  }
}

/** Back to the beginning of the line, which is emptied. */
const CLEARED = "\r\u001b[K";
