/** `thaw doctor`: what works on this machine, what does not, and what to do about it. Probes here, not on the server. */
import { resolve } from "node:path";
import type { Command } from "commander";
import { isThawError } from "../../base/errors.js";
import type { ServerView } from "../../gateway/index.js";
import type { MachineReport } from "../../linux/doctor.js";
import { EXIT, Exit, formatTable, printable } from "../io.js";
import { notEmpty } from "../options.js";
import { asClient, type ClientOptions, type Context, clientOf, jsonLine } from "./context.js";

interface Options extends ClientOptions {
  readonly data: string;
}

/** Adds the command. */
export function addDoctor(program: Command, context: Context): void {
  asClient(program.command("doctor"))
    .description("probe this machine: what works, what does not, what to do about it")
    .option("--data <folder>", "the data directory to look at", notEmpty, "./data")
    .action((options: Options) => doctor(context, options));
}

async function doctor({ io, parts }: Context, options: Options): Promise<void> {
  const client = clientOf(io, options);
  const report = await parts.probeMachine(resolve(io.cwd, options.data));
  const server = await client.json<ServerView>("GET", "/thaw/v1/server", "runtimes").catch((error: unknown) => {
    if (isThawError(error, "SERVER_UNREACHABLE")) return null;
    throw error;
  });
  if (options.json === true) {
    await io.out(jsonLine({ ...report, server }));
  } else {
    await io.out(reportText(report));
    const { version, canFreeze, runtimes } = server ?? {};
    const what = server === null ? "no server answers" : `thaw ${version}, ${canFreeze ? "freezing" : "booting only"}`;
    const which = runtimes === undefined ? "" : `, ${runtimes.map(({ id }) => id).join(", ")}`;
    await io.out(`\nAt ${client.url}: ${printable(what + which)}.\n`);
  }
  if (!report.ok) throw new Exit(EXIT.failed);
}

function reportText({ canFreeze, canBoot, checks }: MachineReport): string {
  const rows = checks.map(({ name, ok, required, says }) => [ok ? "ok" : required ? "FAILS" : "warns", name, says]);
  const fixes = checks
    .filter(({ ok, fix }) => !ok && fix !== undefined)
    .map(({ name, fix }) => `  ${printable(`${name}: ${fix}`)}\n`);
  const verdict = canFreeze
    ? "Functions can be frozen and thawed on this machine."
    : canBoot
      ? "Functions cannot be frozen on this machine. `thaw serve --boot-only` runs them without images."
      : "Functions cannot run on this machine.";
  return `${formatTable(["", "CHECK", "FOUND"], rows)}${fixes.length === 0 ? "" : `\nWhat to do:\n${fixes.join("")}`}\n${verdict}\n`;
}
