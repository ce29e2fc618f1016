/** `thaw invoke`: the reply goes to stdout as it is, everything about it to stderr. */
import { resolve } from "node:path";
import type { Command } from "commander";
import { errorText, ThawError } from "../../base/errors.js";
import { formatUs } from "../../base/units.js";
import { parseStartHeader } from "../../platform/start-header.js";
import { LIMITS } from "../../platform/types.js";
import { errorFrom, notThaw, type Reply } from "../client.js";
import { EXIT, Exit, Interrupted, type Io, printable, printableLines, readFileUpTo, withoutMark } from "../io.js";
import { asClient, type ClientOptions, type Context, clientOf, jsonLine, nameInPath } from "./context.js";

interface Options extends ClientOptions {
  readonly payload?: string;
  readonly qualifier?: string;
  readonly prefer?: string;
  readonly trace?: boolean;
  readonly tail?: boolean;
}

/** What `--json` prints. */
interface InvokeJson {
  readonly payload: unknown;
  readonly functionError?: string;
  readonly platformError?: string;
  readonly requestId: string;
  readonly executedVersion: string;
  /** Parts of X-Thaw-Start, numbers as numbers. */
  readonly start: Readonly<Record<string, string | number>>;
  /** From the request in the server's hand to the response in its hand; absent where it does not say. */
  readonly serverUs?: number;
  /** From before the connection was made until the reply was here. */
  readonly totalUs: number;
  readonly log?: string;
  readonly trace?: unknown;
}

/** Adds the command. */
export function addInvoke(program: Command, { io }: Context): void {
  asClient(program.command("invoke"))
    .description("call a function and print its reply")
    .argument("<name>", "name or ARN, with :QUALIFIER if need be")
    .option("--payload <json>", "the event: JSON, @FILE, or - for stdin (default: {})")
    .option("--qualifier <version>", "version or alias")
    .option("--prefer <start>", "demand a kind of start, such as boot, thaw;loader=lazy, thaw;generation=2, parked or reuse")
    .option("--trace", "show the phases of the start, and pages by source")
    .option("--tail", "show what the function logged")
    .addHelpText("after", `\nExits with ${EXIT.functionError} when the function itself failed.`)
    .action((name: string, options: Options) => invoke(io, name, options));
}

async function invoke(io: Io, name: string, options: Options): Promise<void> {
  const client = clientOf(io, options);
  const body = await readPayload(io, options.payload ?? "{}");
  const began = performance.now();
  const reply = await client.send("POST", `/2015-03-31/functions/${nameInPath(name)}/invocations`, {
    query: { Qualifier: options.qualifier },
    headers: {
      "content-type": "application/json",
      ...(options.prefer === undefined ? {} : { "x-thaw-prefer": options.prefer }),
      ...(options.trace === true ? { "x-thaw-trace": "1" } : {}),
      ...(options.tail === true ? { "x-amz-log-type": "Tail" } : {}),
    },
    body,
  });
  const totalUs = Math.round((performance.now() - began) * 1000);
  if (reply.status !== 200) throw errorFrom(reply, client.url);
  if (reply.headers["x-thaw-start"] === undefined)
    throw notThaw(client.url, "its reply does not say how it started the function");

  const about = described(reply, totalUs, client.url);
  if (options.json === true) await io.out(jsonLine(about));
  else await printForPeople(io, reply.body, about);
  if (about.functionError !== undefined) throw new Exit(EXIT.functionError);
}

/** The bytes that `--payload` names; of too many, enough for the server to refuse them. INVALID_PAYLOAD. */
export async function readPayload(io: Io, text: string): Promise<Buffer> {
  if (text === "-") return withoutMark(await io.readInput(LIMITS.payloadBytes));
  if (!text.startsWith("@")) return Buffer.from(text);
  const path = resolve(io.cwd, text.slice(1));
  try {
    return withoutMark(await readFileUpTo(path, LIMITS.payloadBytes, io.stop));
  } catch (error) {
    if (error instanceof Interrupted) throw error;
    throw new ThawError("INVALID_PAYLOAD", {
      what: "The payload cannot be read",
      why: errorText(error),
      fix: "Check --payload",
      cause: error,
    });
  }
}

function described(reply: Reply, totalUs: number, url: string): InvokeJson {
  try {
    return describe(reply, totalUs);
  } catch (error) {
    throw notThaw(url, `what its reply says of the start is not JSON: ${errorText(error)}`, error);
  }
}

function describe({ headers, body }: Reply, totalUs: number): InvokeJson {
  const text = (name: string): string | undefined => {
    const value = headers[name];
    return typeof value === "string" ? value : undefined;
  };
  const functionError = text("x-amz-function-error");
  const serverMs = /^total;dur=(\d+(?:\.\d+)?)$/.exec(text("server-timing") ?? "")?.[1];
  const platformError = text("x-thaw-platform-error");
  const log = text("x-amz-log-result");
  const trace = text("x-thaw-trace");
  return {
    payload: parseReply(body),
    ...(functionError === undefined ? {} : { functionError }),
    ...(platformError === undefined ? {} : { platformError }),
    requestId: text("x-amzn-requestid") ?? "",
    executedVersion: text("x-amz-executed-version") ?? "",
    start: parseStartHeader(text("x-thaw-start") ?? ""),
    ...(serverMs === undefined ? {} : { serverUs: Math.round(Number(serverMs) * 1000) }),
    totalUs,
    ...(log === undefined ? {} : { log: Buffer.from(log, "base64").toString() }),
    ...(trace === undefined ? {} : { trace: JSON.parse(trace) as unknown }),
  };
}

/** JSON as a value, so that it is not JSON inside JSON; text if it should be none. */
function parseReply(body: Buffer): unknown {
  if (body.length === 0) return null;
  try {
    return JSON.parse(body.toString()) as unknown;
  } catch {
    return body.toString();
  }
}

async function printForPeople(io: Io, body: Buffer, about: InvokeJson): Promise<void> {
  if (about.log !== undefined) io.err(about.log.endsWith("\n") ? about.log : `${about.log}\n`);
  await io.out(Buffer.concat([body, Buffer.from("\n")]));
  const { kind, loader, generation, us, wait, fallback } = about.start;
  const how = [
    loader === undefined ? `${kind}` : `${kind} (${loader})`,
    ...(typeof generation === "number" && generation > 0 ? [`generation ${generation}`] : []),
    ...(typeof us === "number" && us > 0 ? [`started in ${formatUs(us)}`] : []),
    ...(typeof wait === "number" ? [`waited ${formatUs(wait)}`] : []),
    about.serverUs === undefined
      ? `answered in ${formatUs(about.totalUs)}`
      : `answered in ${formatUs(about.serverUs)} (${formatUs(about.totalUs)} with this command's connection)`,
  ];
  io.err(`${printable(how.join(", "))}\n`);
  if (fallback !== undefined) io.err(`not as intended: ${printable(String(fallback))}\n`);
  if (about.functionError !== undefined) {
    const which = about.platformError === undefined ? "" : ` (${about.platformError})`;
    io.err(`${printable(`error: the function failed${which}`)}\n`);
  }
  if (about.trace !== undefined) io.err(`${printableLines(JSON.stringify(about.trace, null, 2))}\n`);
}
