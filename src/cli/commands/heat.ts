/** `thaw image ls`, `thaw heat`: a function's images by heat, and making a hotter one. */
import type { Command } from "commander";
import { formatBytes, formatUs } from "../../base/units.js";
import { type HeatReport, type ImageEntry, LIMITS } from "../../platform/types.js";
import { codeHeatText } from "../heat-text.js";
import { formatTable, type Io, printable, printableLines } from "../io.js";
import { wholeNumber } from "../options.js";
import { asClient, type ClientOptions, type Context, clientOf, functionPath, jsonLine, withProgress } from "./context.js";
import { readPayload } from "./invoke.js";

/** Requests of `thaw heat` unless told otherwise: the hottest of the fixed points. */
const HEAT_REQUESTS = 1000;

/** Adds the commands, the first of them to those of `image`. */
export function addHeatCommands(program: Command, image: Command, { io }: Context): void {
  asClient(image.command("ls"))
    .description("list a function's images by heat: requests that each had served before it was made")
    .argument("<name>")
    .action((name: string, options: ClientOptions) => listImages(io, name, options));
  asClient(program.command("heat"))
    .description("make a hotter image now: replay requests in a private instance, then freeze it")
    .argument("<name>")
    .option("--requests <n>", "how many to replay", wholeNumber(1, LIMITS.heatRequestsMax), HEAT_REQUESTS)
    .option("--payload <json>", "the event: JSON, @FILE, or - for stdin (default: the declared warm-up events, or {})")
    .option("--from <generation>", "the image to begin with (default: the hottest)", wholeNumber(0, 999_999_999))
    .action((name: string, options: HeatOptions) => heat(io, name, options));
}

/** Marks the image that most starts thaw. One may be another one: a policy tries them all before it prefers one, and looks again now and then. */
const FAVOURITE = "most starts";

async function listImages(io: Io, name: string, options: ClientOptions): Promise<void> {
  const images = await clientOf(io, options).json<ImageEntry[]>("GET", functionPath(name, "/images"), "length");
  if (options.json === true) return io.out(jsonLine(images));
  if (images.length === 0) return io.out(`${printable(`${name} has no image; \`thaw image inspect ${name}\` says why`)}\n`);
  const rows = images.map(({ generation, heat: requests, bytes, code, source, createdMs, chosen }) => [
    String(generation),
    String(requests),
    formatBytes(bytes),
    code === undefined ? "-" : codeHeatText(code),
    source,
    new Date(createdMs).toISOString().replace(/\.\d+Z$/, "Z"),
    chosen ? FAVOURITE : "-",
  ]);
  await io.out(formatTable(["GENERATION", "HEAT", "SIZE", "CODE", "FROM", "MADE", "USED FOR"], rows));
}

interface HeatOptions extends ClientOptions {
  readonly requests: number;
  readonly payload?: string;
  readonly from?: number;
}

async function heat(io: Io, name: string, options: HeatOptions): Promise<void> {
  const client = clientOf(io, options);
  const { requests, from } = options;
  const body = options.payload === undefined ? undefined : await readPayload(io, options.payload);
  const report = await withProgress(io, options, `replaying ${requests} requests …`, () =>
    client.json<HeatReport>("POST", functionPath(name, "/heat"), "image", {
      query: { requests: String(requests), from: from?.toString() },
      ...(body === undefined ? {} : { headers: { "content-type": "application/json" }, body }),
    }),
  );
  if (options.json === true) return io.out(jsonLine(report));
  await io.out(heatSentences(name, report));
}

/** What was made, and what it brought. */
function heatSentences(name: string, { image, requests, firstMs, lastMs }: HeatReport): string {
  const made = [
    `generation ${image.generation}`,
    `heat ${image.heat}`,
    formatBytes(image.bytes),
    ...(image.code === undefined ? [] : [codeHeatText(image.code)]),
  ];
  const times = `${formatUs(firstMs * 1000)} for the first of ${requests} requests, ${formatUs(lastMs * 1000)} for the last`;
  const gain = lastMs > 0 ? `: ${(firstMs / lastMs).toFixed(1)} times as fast` : "";
  return `${printableLines(`${name} has a new image: ${made.join(", ")}\nhandler: ${times}${gain}`)}\n`;
}
