/** `thaw ls`, `thaw logs`, `thaw rm`, `thaw hibernate`, `thaw wake`, `thaw image inspect`: what is deployed. */
import { type Command, Option } from "commander";
import { formatBytes, formatUs, MIB } from "../../base/units.js";
import type { FunctionView, ImageView } from "../../gateway/index.js";
import type { HandReport, ImageState } from "../../platform/types.js";
import { heatText } from "../heat-text.js";
import { formatPairs, formatTable, type Io, printable } from "../io.js";
import { wholeNumber } from "../options.js";
import { asClient, type ClientOptions, type Context, clientOf, functionPath, jsonLine, withProgress } from "./context.js";
import { addHeatCommands } from "./heat.js";

/** Adds the commands. */
export function addFunctionCommands(program: Command, context: Context): void {
  const { io } = context;
  asClient(program.command("ls"))
    .description("list functions, their images and instances")
    .action((options: ClientOptions) => list(io, options));
  asClient(program.command("logs"))
    .description("print what a function wrote")
    .argument("<name>")
    .option("-f, --follow", "go on printing as it comes")
    .addOption(
      new Option("--bytes <n>", "at most so much of the past (default: 65536)")
        .argParser(wholeNumber(1, 999_999_999))
        .conflicts("follow"),
    )
    .action((name: string, options: LogsOptions) => logs(io, name, options));
  asClient(program.command("rm"))
    .description("remove a function, its instances, images and logs")
    .argument("<name>")
    .action((name: string, options: ClientOptions) => remove(io, name, options));
  asClient(program.command("hibernate"))
    .description("write the memory of a function's idle instances to disk, now")
    .argument("<name>")
    .action((name: string, options: ClientOptions) => byHand(io, name, "hibernate", options));
  asClient(program.command("wake"))
    .description("bring a function's hibernated instances back, ahead of requests")
    .argument("<name>")
    .action((name: string, options: ClientOptions) => byHand(io, name, "wake", options));

  const image = program.command("image").description("look at images");
  asClient(image.command("inspect"))
    .description("show a function's image: size, what freezing cost and what it found")
    .argument("<name>")
    .action((name: string, options: ClientOptions) => inspect(io, name, options));
  addHeatCommands(program, image, context);
}

/** The column STATE: how the next start without an idle instance would be. */
const STATE_WORDS: Readonly<Record<ImageState, string>> = {
  none: "boots",
  pending: "freezing",
  ready: "frozen",
  refused: "boots (refused)",
  failed: "failed",
};

async function list(io: Io, options: ClientOptions): Promise<void> {
  const reply = await clientOf(io, options).json<{ functions: FunctionView[] }>("GET", "/thaw/v1/functions", "functions");
  if (options.json === true) return io.out(jsonLine(reply));
  if (reply.functions.length === 0) return io.out("No functions. Deploy one: thaw deploy FOLDER\n");
  const rows = reply.functions.map((info) => {
    const { name, runtime, memoryMb, image, instances, counts, provisioned = 0, provisionedReady = 0, lastStart } = info;
    return [
      name,
      runtime,
      `${memoryMb} MB`,
      STATE_WORDS[image.state],
      image.image === undefined ? "-" : formatBytes(image.image.bytesOnDisk),
      heatText(info),
      instanceText(instances, counts.starting, { wanted: provisioned, ready: provisionedReady }),
      sizeText(instances.map(({ residentBytes }) => residentBytes)),
      sizeText(instances.map(({ hibernatedBytes }) => hibernatedBytes)),
      lastStart === undefined ? "-" : `${lastStart.kind}${lastStart.us > 0 ? ` ${formatUs(lastStart.us)}` : ""}`,
    ];
  });
  const headings = ["NAME", "RUNTIME", "MEMORY", "STATE", "IMAGE", "HEAT", "INSTANCES", "RESIDENT", "ON DISK", "LAST START"];
  await io.out(formatTable(headings, rows));
  for (const { name, image } of reply.functions) {
    if ((image.state === "refused" || image.state === "failed") && image.reason !== undefined)
      await io.out(`${printable(`${name}: ${image.reason}`)}\n`);
    if (image.heat?.state === "failed")
      await io.out(`${printable(`${name}: ${image.heat.reason ?? "it could not be made hotter"}`)}\n`);
  }
}

/** `2 warm, 1 hibernated`, then what is kept ready beside them. */
function instanceText(
  instances: FunctionView["instances"],
  starting: number,
  husks: { readonly wanted: number; readonly ready: number },
): string {
  const states = new Map<string, number>();
  for (const { state } of instances) states.set(state, (states.get(state) ?? 0) + 1);
  if (starting > 0) states.set("starting", starting);
  const parts = [...states].map(([state, count]) => `${count} ${state}`);
  const { wanted, ready } = husks;
  if (wanted > 0) parts.push(ready === wanted ? `${wanted} provisioned` : `${ready} of ${wanted} provisioned`);
  return parts.length === 0 ? "0" : parts.join(", ");
}

function sizeText(sizes: readonly number[]): string {
  const sum = sizes.reduce((total, bytes) => total + bytes, 0);
  return sum === 0 ? "-" : formatBytes(sum);
}

async function byHand(io: Io, name: string, what: "hibernate" | "wake", options: ClientOptions): Promise<void> {
  const report = await clientOf(io, options).json<HandReport>("POST", functionPath(name, `/${what}`), "instances");
  if (options.json === true) return io.out(jsonLine(report));
  const { instances, skipped, reason, residentBytes, hibernatedBytes } = report;
  const which = `${instances} instance${instances === 1 ? "" : "s"} of ${name}`;
  // One that ended is in none of the counts but this one; its log says of what.
  const taken = what === "hibernate" ? "a request took it, or it ended" : "it ended";
  const left = skipped === 0 ? "" : `; ${skipped} not: ${reason ?? `${taken} (see \`thaw logs ${name}\`)`}`;
  const sentence =
    what === "hibernate"
      ? `${which} hibernated: ${formatBytes(-residentBytes)} given back, ${formatBytes(hibernatedBytes)} on disk${left}`
      : `${which} woken${left}`;
  await io.out(`${printable(sentence)}\n`);
}

/** Of a line of log that is kept whole; a request prints 4 MiB at most. */
const LINE_LENGTH_MAX = 16 * MIB;

interface LogsOptions extends ClientOptions {
  readonly follow?: boolean;
  readonly bytes?: number;
}

async function logs(io: Io, name: string, options: LogsOptions): Promise<void> {
  await printLog(io, name, options);
  if (options.follow === true && !io.stop.aborted)
    io.err("the log ends here: the function was removed, or the server is stopping\n");
}

async function printLog(io: Io, name: string, options: LogsOptions): Promise<void> {
  const query = options.follow === true ? { follow: "1" } : { bytes: options.bytes?.toString() };
  const stream = clientOf(io, options).stream(functionPath(name, "/logs"), { query });
  if (options.json !== true) {
    for await (const chunk of stream) await io.out(chunk);
    return;
  }
  // One JSON object a line of log. A chunk may end inside a line, and inside a character.
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    // One without end, as another program may send it, is cut.
    if (rest.length > LINE_LENGTH_MAX) {
      lines.push(rest);
      rest = "";
    }
    if (lines.length > 0) await io.out(lines.map((line) => jsonLine({ line })).join(""));
  }
  if (rest !== "") await io.out(jsonLine({ line: rest }));
}

async function remove(io: Io, name: string, options: ClientOptions): Promise<void> {
  await withProgress(io, options, "removing it …", () => clientOf(io, options).done("DELETE", functionPath(name)));
  await io.out(options.json === true ? jsonLine({ removed: name }) : `${printable(name)} removed\n`);
}

type Inspection = NonNullable<ImageView["inspection"]>;
type WorkingSetView = NonNullable<Inspection["workingSet"]>;

const NO_SET = "none recorded yet";
const DAMAGED_SET = "damaged: recorded anew at the next thaws";

function workingSetPairs(set: WorkingSetView): [string, string][] {
  const classes = ({ image, file, zero }: WorkingSetView["read"]): string =>
    `${image} of the image, ${file} of files, ${zero} zero`;
  const state = `${set.stable ? "stable" : "more are made"}${set.rehearsed ? ", rehearsed" : ""}`;
  const exact = set.exact ? "exact" : "not exact: this kernel maps neighbours of what is touched, and they count too";
  const renewed = set.renewals === 0 ? "" : `; recorded anew ${set.renewals} times`;
  return [
    ["working set", `${set.recordings} recordings (${state}), ${exact}, in order of ${set.order}`],
    ["  written", `pages: ${classes(set.written)}`],
    ["  only read", `pages: ${classes(set.read)}`],
    ["  from disk", `${formatBytes(set.rangeBytes)} in ${set.ranges} ranges`],
    [
      "  outside",
      `faults of the last starts: ${set.outside.length === 0 ? "none counted yet" : set.outside.join(", ")}${renewed}`,
    ],
  ];
}

/** Slowest tier first, as the runtime names them; what is in none was never called. */
function codeText({ functions, tiers, codeBytes }: NonNullable<Inspection["code"]>): string {
  const called = Object.values(tiers).reduce((sum, count) => sum + count, 0);
  const parts = Object.entries(tiers).map(([tier, count]) => `${count} ${tier}`);
  if (functions > called) parts.unshift(`${functions - called} never called`);
  const machine = codeBytes === undefined ? "" : `; ${formatBytes(codeBytes)} of machine code in all`;
  return `of ${functions} functions of its own: ${parts.join(", ")}${machine}`;
}

function inspectionPairs(inspection: Inspection): [string, string][] {
  const { pages, mappings, bytes, workingSet } = inspection;
  return [
    ["format", `${inspection.formatVersion}, made ${new Date(inspection.createdMs).toISOString()}`],
    ["for", `${inspection.kernel}, CPU features ${inspection.cpu}`],
    ["checked", "manifest, temporary files and pages are as they were written"],
    ...(inspection.code === undefined ? [] : [["code", codeText(inspection.code)] satisfies [string, string]]),
    ["pages", `${pages.stored} stored; zero pages and clean file pages are not`],
    ...(inspection.base === undefined
      ? []
      : [["base", `${inspection.base.sharedPages} more pages are those of ${inspection.base.id}`] satisfies [string, string]]),
    ...(workingSet === undefined
      ? [["working set", inspection.workingSetDamaged ? DAMAGED_SET : NO_SET] as [string, string]]
      : workingSetPairs(workingSet)),
    [
      "mappings",
      Object.entries(mappings)
        .map(([kind, count]) => `${count} ${kind}`)
        .join(", "),
    ],
    ["threads", inspection.threads.join(", ")],
    ["lineage", `pids ${inspection.lineagePids.join(", ")}`],
    ["descriptors", inspection.descriptors.join("; ")],
    ["/tmp", `${inspection.tmpFiles} files`],
    [
      "files",
      Object.entries(bytes)
        .map(([name, size]) => `${name} ${formatBytes(size)}`)
        .join(", "),
    ],
    ...inspection.mappedFiles.map((path): [string, string] => ["maps", path]),
  ];
}

async function inspect(io: Io, name: string, options: ClientOptions): Promise<void> {
  const status = await clientOf(io, options).json<ImageView>("GET", functionPath(name, "/image"), "state");
  if (options.json === true) return io.out(jsonLine(status));
  const { image } = status;
  const pairs: [string, string][] = [["state", status.state]];
  if (status.reason !== undefined) pairs.push(["reason", status.reason]);
  if (image !== undefined) {
    const { report } = image;
    pairs.push(
      ["image", image.id],
      ["directory", image.dir],
      ["generation", String(image.generation)],
      ["heat", `${image.heat} requests before the freeze`],
      ["on disk", formatBytes(image.bytesOnDisk)],
      [
        "anonymous",
        `${formatBytes(report.anonymousBytes)} private to the instance; ${formatBytes(report.storedBytes)} stored, what came from its own image included`,
      ],
      ["hygiene", `${report.hygieneMs.toFixed(1)} ms`],
      ["stopped", `${report.stoppedMs.toFixed(1)} ms`],
      ["freezing", `${report.totalMs.toFixed(1)} ms in all`],
      ...report.notes.map((note): [string, string] => ["note", note]),
    );
    if (status.inspection !== undefined) pairs.push(...inspectionPairs(status.inspection));
  }
  await io.out(formatPairs(pairs));
}
