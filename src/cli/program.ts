/** The commands of `thaw`, and one run of them: errors become lines on stderr and an exit code. */
import { createRequire } from "node:module";
import { Command, CommanderError } from "commander";
import { ThawError } from "../base/errors.js";
import type { Context } from "./commands/context.js";
import { addDeploy } from "./commands/deploy.js";
import { addDoctor } from "./commands/doctor.js";
import { addFunctionCommands } from "./commands/functions.js";
import { addInvoke } from "./commands/invoke.js";
import { addServe } from "./commands/serve.js";
import { EXIT, Exit, errorJson, formatError, Interrupted } from "./io.js";

const { version } = createRequire(import.meta.url)("../../package.json") as { version: string };

/** Exit code of a command that a signal ended, as shells have it for SIGINT. */
const INTERRUPTED = 130;

/** Runs one command line (without interpreter and script) and resolves to its exit code. Never throws. */
export async function run(args: readonly string[], context: Context): Promise<number> {
  const { io } = context;
  const json = args.includes("--json");
  const program = buildProgram(context, json);
  try {
    await program.parseAsync(args, { from: "user" });
    return EXIT.ok;
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return EXIT.ok;
      if (json) io.err(errorJson(usageError(error)));
      return EXIT.usage;
    }
    if (error instanceof Exit) return error.code;
    if (error instanceof Interrupted) {
      io.err("interrupted\n");
      return INTERRUPTED;
    }
    io.err(json ? errorJson(error) : formatError(error));
    return EXIT.failed;
  }
}

/** A command line that cannot be used, for machines. */
function usageError({ message }: CommanderError): ThawError {
  return new ThawError("INVALID_ARGUMENT", { what: message.replace(/^error: /, ""), fix: "Add --help for what there is" });
}

/** With `json`, a usage error is printed by `run`, not here. */
function buildProgram(context: Context, json: boolean): Command {
  const { io } = context;
  const program = new Command("thaw");
  program
    .description("Runs serverless functions that are frozen, not stopped.")
    .version(version)
    .showHelpAfterError("(add --help for what there is)")
    .exitOverride()
    .configureOutput({ writeOut: (text) => void io.out(text), writeErr: (text) => json || io.err(text) });
  addServe(program, context);
  addDeploy(program, context);
  addInvoke(program, context);
  addFunctionCommands(program, context);
  addDoctor(program, context);
  return program;
}
