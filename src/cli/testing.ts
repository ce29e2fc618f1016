/** For tests: one run of the CLI in this process, with what it printed and its exit code. */
import type { MachineReport } from "../linux/doctor.js";
import type { Context, OpenEngine, Parts } from "./commands/context.js";
import { run } from "./program.js";

/** What a user would see. */
export interface CliRun {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

export interface CliOptions {
  readonly url?: string;
  readonly cwd?: string;
  readonly input?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly stop?: AbortController;
  readonly machine?: MachineReport;
  readonly openEngine?: OpenEngine;
  /** Whether stderr is a terminal; default: no. */
  readonly interactive?: boolean;
  /** Called with everything printed to stdout so far, after each piece. */
  readonly onOut?: (out: string) => void;
}

/** A machine on which everything works. */
const GOOD_MACHINE: MachineReport = {
  ok: true,
  canFreeze: true,
  canBoot: true,
  checks: [{ name: "kernel", ok: true, required: true, says: "Linux 6.18" }],
  interpreters: [],
};

/** Runs `thaw` with `args`. */
export async function runCli(args: readonly string[], options: CliOptions = {}): Promise<CliRun> {
  let out = "";
  let err = "";
  const parts: Parts = {
    probeMachine: async () => options.machine ?? GOOD_MACHINE,
    openEngine:
      options.openEngine ??
      (() => {
        throw new Error("this test needs no engine");
      }),
  };
  const context: Context = {
    parts,
    io: {
      async out(text) {
        out += text.toString();
        options.onOut?.(out);
      },
      err(text) {
        err += text;
      },
      readInput: async () => Buffer.from(options.input ?? ""),
      env: { ...(options.url === undefined ? {} : { THAW_URL: options.url }), ...options.env },
      cwd: options.cwd ?? "/nonexistent",
      stop: (options.stop ?? new AbortController()).signal,
      interactive: options.interactive ?? false,
    },
  };
  const code = await run(args, context);
  return { code, out, err };
}
