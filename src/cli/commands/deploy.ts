/** `thaw deploy`: packs a folder, sends it, and with `--wait` returns when the function's image is ready. */
import { basename, resolve } from "node:path";
import type { Command } from "commander";
import { ThawError } from "../../base/errors.js";
import { formatBytes } from "../../base/units.js";
import type { FunctionView } from "../../gateway/index.js";
import type { ImageStatus } from "../../platform/types.js";
import type { Client } from "../client.js";
import { checkHandler, packCode } from "../code-package.js";
import { type Io, printable } from "../io.js";
import { seconds, setting, wholeNumber } from "../options.js";
import { readThawJson, THAW_JSON, type ThawJson } from "../thaw-json.js";
import { asClient, type ClientOptions, type Context, clientOf, functionPath, jsonLine } from "./context.js";

/** Seconds that `--wait` waits unless told otherwise: a function may take minutes to load. */
const WAIT_SECONDS = 300;

interface Options extends ClientOptions, ThawJson {
  readonly update?: boolean;
  readonly wait?: boolean;
  readonly waitTimeout: number;
}

/** Adds the command. */
export function addDeploy(program: Command, { io }: Context): void {
  asClient(program.command("deploy"))
    .description("deploy a function from a folder or a zip; its image is made in the background")
    .argument("<path>", "folder with the function's code, or a .zip file")
    .option("--name <name>", "default: the name of the folder")
    .option("--runtime <id>", "nodejs20.x, python3.11, …; guessed from the files when absent")
    .option("--handler <file.export>", "guessed from the files when absent")
    .option("--memory <MB>", "memory limit (default: 128)", wholeNumber(1))
    .option("--timeout <seconds>", "time to answer (default: 3)", seconds)
    .option("--tmp <MB>", "size of /tmp (default: 512)", wholeNumber(1))
    .option("--env <name=value>", "environment variable; repeat for more", setting)
    .option("--max-instances <n>", "instances that may run at once", wholeNumber(1))
    .option(
      "--provisioned <n>",
      "husks kept parked for it, so that requests find one filled already (default: 0)",
      wholeNumber(0, 1000),
    )
    .option("--update", "replace the function if it exists")
    .option("--wait", "return when the image is ready")
    .option("--wait-timeout <seconds>", `how long to wait (default: ${WAIT_SECONDS})`, seconds, WAIT_SECONDS)
    .addHelpText("after", `\nA ${THAW_JSON} in the folder can hold the same settings; options override it.`)
    .action((path: string, options: Options) => deploy(io, path, options));
}

async function deploy(io: Io, path: string, options: Options): Promise<void> {
  const client = clientOf(io, options);
  const folder = resolve(io.cwd, path);
  const code = await packCode(folder);
  const file = code.names.size > 0 ? await readThawJson(folder) : {};
  const name = options.name ?? file.name ?? basename(folder, ".zip");
  const handler = options.handler ?? file.handler;
  if (handler !== undefined) checkHandler(code, handler, folder);
  const env = { ...file.env, ...options.env };

  const about = await client.json<FunctionView>(options.update === true ? "PUT" : "POST", functionPath(name), {
    query: {
      runtime: options.runtime ?? file.runtime,
      handler,
      memory: text(options.memory ?? file.memory),
      timeout: text(options.timeout ?? file.timeout),
      tmp: text(options.tmp ?? file.tmp),
      maxInstances: text(options.maxInstances ?? file.maxInstances),
      provisioned: text(options.provisioned ?? file.provisioned),
      env: Object.entries(env).map(([key, value]) => `${key}=${value}`),
    },
    headers: { "content-type": "application/zip" },
    body: code.zip,
  });
  if (options.json !== true) {
    const parts = [about.runtime, about.handler, `${about.memoryMb} MB`, `${formatBytes(about.codeBytes)} of code`];
    await io.out(`${about.name} deployed: ${printable(parts.join(", "))}\n`);
  }
  const image = options.wait === true ? await waitForImage(io, client, about.name, options) : about.image;
  if (options.json === true) await io.out(jsonLine({ ...about, image }));
}

async function waitForImage(io: Io, client: Client, name: string, options: Options): Promise<ImageStatus> {
  const progress = io.interactive && options.json !== true;
  if (progress) io.err("making its image …");
  let status: ImageStatus;
  try {
    status = await client.json<ImageStatus>("GET", functionPath(name, "/ready"), {
      query: { timeout: String(options.waitTimeout) },
    });
  } finally {
    if (progress) io.err("\r\u001b[K");
  }
  if (options.json !== true) await io.out(`${imageSentence(name, status)}\n`);
  return status;
}

function imageSentence(name: string, { state, image, reason }: ImageStatus): string {
  if (state === "ready" && image !== undefined) {
    const { bytesOnDisk, report } = image;
    return `${name} is ready: image of ${formatBytes(bytesOnDisk)}, stopped for ${report.stoppedMs.toFixed(1)} ms while it was made`;
  }
  const why = reason === undefined ? "" : ` (${printable(reason)})`;
  if (state === "none" || state === "refused") return `${name} has no image and will be booted at every start${why}`;
  // `ready` without an image, or a state that a wait never ends in: the server is not of this version.
  throw new ThawError("IMAGE_NOT_READY", {
    what: `The image of ${name} is ${state}`,
    ...(reason === undefined ? {} : { why: reason }),
  });
}

function text(value: number | undefined): string | undefined {
  return value === undefined ? undefined : String(value);
}
