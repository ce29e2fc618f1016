/**
 * `npm run bench`: all sections, or those that are named. Tables for people, or with `--json` one line for each result on
 * stdout. Exit code: 0 when every run succeeded (whatever the figures are), 1 when one failed, 2 for a wrong command line.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Command, CommanderError, InvalidArgumentError } from "commander";
import { ThawError } from "../base/errors.js";
import { Cleanup, cleanUpOnSignals, Deadline, within } from "./bounded.js";
import { describeEnvironment, readEnvironment, scratchDir } from "./environment.js";
import type { Lab, Section } from "./lab.js";
import { Progress } from "./progress.js";
import { type Check, checksTable, hasFailed, jsonLines, type SectionReport, troubles } from "./report.js";
import { floor } from "./sections/floor.js";
import { freeze } from "./sections/freeze.js";
import { heatFirst } from "./sections/heat-first.js";
import { heatPause } from "./sections/heat-pause.js";
import { heatPolicy } from "./sections/heat-policy.js";
import { http } from "./sections/http.js";
import { memoryCold } from "./sections/memory-cold.js";
import { memoryDensity } from "./sections/memory-density.js";
import { memoryHibernate } from "./sections/memory-hibernate.js";
import { memoryImages } from "./sections/memory-images.js";
import { memoryShare } from "./sections/memory-share.js";
import { memorySpike } from "./sections/memory-spike.js";
import { memoryWarm } from "./sections/memory-warm.js";
import { soak } from "./sections/soak.js";
import { stalls } from "./sections/stalls.js";
import { starts } from "./sections/starts.js";
import { sustained } from "./sections/sustained.js";
import { warm } from "./sections/warm.js";
import { renderTable, wantsColour } from "./table.js";

const SECTIONS: readonly Section[] = [
  starts,
  http,
  floor,
  warm,
  sustained,
  freeze,
  heatPause,
  memoryCold,
  memoryWarm,
  memoryShare,
  memoryHibernate,
  memoryDensity,
  memoryImages,
  memorySpike,
  heatFirst,
  heatPolicy,
  stalls,
  soak,
];
/** Names for several sections at once. */
const GROUPS: Readonly<Record<string, readonly string[]>> = Object.fromEntries(
  ["memory", "heat"].map((group) => [group, SECTIONS.map(({ name }) => name).filter((name) => name.startsWith(`${group}-`))]),
);
const ROUNDS = 30;
/** A section ends at its deadline by itself; this is for one that does not. */
const SECTION_GRACE_MS = 60_000;

interface Options {
  readonly json?: boolean;
  readonly rounds: number;
  readonly only?: readonly string[];
  /** What was promised and not met, or not measured, makes the exit code non-zero, too. */
  readonly strict?: boolean;
}

const progress = new Progress(process.stderr);
const cleanup = new Cleanup();
cleanUpOnSignals(cleanup, say);

try {
  const { sections, options } = readCommandLine(process.argv.slice(2));
  process.exitCode = await bench(sections, options);
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  process.exitCode = error.exitCode === 0 ? 0 : 2;
}

async function bench(sections: readonly Section[], { json = false, strict = false, ...how }: Options): Promise<number> {
  const root = mkdtempSync(join(scratchDir(), "thaw-bench-"));
  cleanup.add("removing the data directory", () => rmSync(root, { recursive: true, force: true }));
  const environment = await readEnvironment(root);
  const colour = wantsColour(process.stdout);
  if (!json) process.stdout.write(`${describeEnvironment(environment)}\n\n`);
  let failed = false;
  const checks: Check[] = [];
  try {
    for (const section of sections) {
      const report = await runSection(section, root, how);
      if (report === undefined) {
        failed = true;
        continue;
      }
      failed ||= hasFailed(report);
      checks.push(...report.checks);
      progress.clear();
      if (json) process.stdout.write(`${jsonLines(section.name, report, environment).join("\n")}\n`);
      else for (const table of report.tables) process.stdout.write(`${renderTable(table, colour)}\n`);
      for (const trouble of troubles(report.measurements)) say(trouble);
    }
  } finally {
    for (const problem of await cleanup.run()) {
      failed = true;
      say(`could not clean up: ${problem}`);
    }
  }
  if (!json && checks.length > 0) process.stdout.write(renderTable(checksTable(checks), colour));
  if (strict && checks.some(({ verdict }) => verdict !== "PASS")) failed = true;
  return failed ? 1 : 0;
}

/** Undefined when the section could not be run; why goes to stderr. The others are run all the same. */
async function runSection(section: Section, root: string, how: Pick<Lab, "rounds" | "only">): Promise<SectionReport | undefined> {
  progress.step(section.name);
  const lab = {
    ...how,
    deadline: new Deadline(section.msMax),
    cleanup,
    progress: (text: string) => progress.detail(text),
    makeDir: (name: string) => mkdtempSync(join(root, `${name}-`)),
  };
  try {
    return await within(section.run(lab), section.msMax + SECTION_GRACE_MS, `section ${section.name}`);
  } catch (error) {
    say(
      `FAILED: section ${section.name}: ${error instanceof ThawError ? error.message : ((error as Error).stack ?? String(error))}`,
    );
    return undefined;
  }
}

function readCommandLine(args: readonly string[]): { sections: readonly Section[]; options: Options } {
  const command = new Command("npm run bench --")
    .description("Measures every way of starting a function beside every other.")
    .argument("[sections...]", "sections to run; all when none is named")
    .option("--json", "one line of JSON for each result, with every sample, instead of tables")
    .option("--strict", "exit with 1, too, where a promise was not met or could not be measured")
    .option("--rounds <n>", "samples of each way of starting", wholeRounds, ROUNDS)
    .option(
      "--only <names>",
      "functions to measure, separated by commas (memory-cold, heat-…); a name that is not there fails",
      names,
    )
    .addHelpText(
      "after",
      `\nSections:\n${SECTIONS.map(({ name, about }) => `  ${name.padEnd(17)} ${about}`).join("\n")}\n${Object.keys(GROUPS)
        .map((name) => `  ${name.padEnd(17)} all whose name begins with ${name}-`)
        .join("\n")}`,
    )
    .exitOverride();
  command.parse([...args], { from: "user" });
  const sections = command.args.flatMap((name) => GROUPS[name] ?? [name]);
  const unknown = sections.find((name) => SECTIONS.every((section) => section.name !== name));
  if (unknown !== undefined) {
    command.error(`error: there is no section "${unknown}"; there are ${SECTIONS.map(({ name }) => name).join(", ")}`);
  }
  return {
    sections: sections.length === 0 ? SECTIONS : SECTIONS.filter(({ name }) => sections.includes(name)),
    options: command.opts(),
  };
}

function names(text: string, before: readonly string[] = []): readonly string[] {
  return [...before, ...text.split(",")];
}

function wholeRounds(text: string): number {
  if (/^[1-9]\d{0,3}$/.test(text)) return Number(text);
  throw new InvalidArgumentError("It must be a whole number from 1 to 9999.");
}

function say(text: string): void {
  progress.clear();
  process.stderr.write(`${text}\n`);
}
