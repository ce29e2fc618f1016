/**
 * `thaw deploy`: packs a folder, sends it, and with `--wait` returns when the function's first image is ready, with `--wait-hot` when
 * the warm-up is over.
 */
import { randomUUID } from "node:crypto";
import { stat } from "node:fs/promises";
import { basename, resolve } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import type { Command } from "commander";
import { ThawError } from "../../base/errors.js";
import { formatBytes } from "../../base/units.js";
import type { FunctionView } from "../../gateway/index.js";
import type { ImageStatus, WarmUp } from "../../platform/types.js";
import type { Client, RequestParts } from "../client.js";
import { type CodePackage, checkHandler, packCode } from "../code-package.js";
import { Interrupted, type Io, printable } from "../io.js";
import { notEmpty, seconds, setting, wholeNumber } from "../options.js";
import { readThawJson, THAW_JSON, type ThawJson } from "../thaw-json.js";
import { readEvents, scriptOf, warmUpFrom } from "../warm-up.js";
import { asClient, type ClientOptions, type Context, clientOf, functionPath, jsonLine, withProgress } from "./context.js";

/** Seconds that `--wait` waits unless told otherwise: a function may take minutes to load. */
const WAIT_SECONDS = 300;

/** Between two looks at a warm-up, milliseconds. */
const LOOK_MS = 100;

interface Options extends ClientOptions, Omit<ThawJson, "warmUp"> {
  /** A file of events, or false for none. */
  readonly warmUp?: string | false;
  readonly update?: boolean;
  readonly wait?: boolean;
  readonly waitHot?: boolean;
  readonly waitTimeout: number;
}

/** Adds the command. */
export function addDeploy(program: Command, { io }: Context): void {
  asClient(program.command("deploy"))
    .description("deploy a function from a folder or a zip; its image is made in the background")
    .argument("<path>", "folder with the function's code, or a .zip file", notEmpty)
    .option("--name <name>", "default: the name of the folder, or of the zip")
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
    .option("--warm-up <file>", "events to replay before images are made: a JSON list, or one event a line in a .jsonl")
    .option("--no-warm-up", "replay none")
    .option("--learn", "make hotter images from instances that serve real requests; they hold what those leave in memory")
    .option("--no-learn", "do not (the default)")
    .option("--update", "replace the function if it exists, with its settings: what is not given again has its default")
    .option("--wait", "return when the image is ready")
    .option("--wait-hot", "return when the warm-up is over, and fail when it failed")
    .option("--wait-timeout <seconds>", "how long to wait", seconds, WAIT_SECONDS)
    .addHelpText(
      "after",
      `\nA ${THAW_JSON} in the folder can hold the same settings; options override it. Its warmUp may name a script, which runs here.`,
    )
    .action((path: string, options: Options) => deploy(io, path, options));
}

async function deploy(io: Io, path: string, options: Options): Promise<void> {
  const client = clientOf(io, options);
  const folder = resolve(io.cwd, path);
  const isFolder = (await stat(folder).catch(() => undefined))?.isDirectory() === true;
  const file = isFolder ? await readThawJson(folder) : {};
  const source = options.warmUp === undefined ? file.warmUp : undefined;
  const code = await packCode(folder, [scriptOf(file.warmUp)]);
  const name = options.name ?? file.name ?? basename(folder, ".zip");
  const handler = options.handler ?? file.handler;
  if (handler !== undefined) checkHandler(code, handler, folder);
  const env = { ...file.env, ...options.env };
  const learn = options.learn ?? file.learn;
  const named = typeof options.warmUp === "string" ? await readEvents(io, resolve(io.cwd, options.warmUp)) : undefined;
  const warmUp = source === undefined ? named : await warmUpFrom(io, folder, source);
  if (options.waitHot === true && warmUp === undefined) throw nothingToWaitFor();

  const query = {
    runtime: options.runtime ?? file.runtime,
    handler,
    memory: text(options.memory ?? file.memory),
    timeout: text(options.timeout ?? file.timeout),
    tmp: text(options.tmp ?? file.tmp),
    maxInstances: text(options.maxInstances ?? file.maxInstances),
    provisioned: text(options.provisioned ?? file.provisioned),
    learn: learn === undefined ? undefined : learn ? "1" : "0",
    env: Object.entries(env).map(([key, value]) => `${key}=${value}`),
  };
  const method = options.update === true ? "PUT" : "POST";
  const about = await withProgress(io, options, "sending its code …", (say) =>
    client.json<FunctionView>(method, functionPath(name), "codeSha256", { query, ...deployBody(code, warmUp, say) }),
  );
  if (options.json !== true) {
    const parts = [about.runtime, about.handler, `${about.memoryMb} MB`, `${formatBytes(about.codeBytes)} of code`];
    await io.out(`${printable(`${about.name} deployed: ${parts.join(", ")}`)}\n`);
    if (about.learn === true)
      await io.out(`${printable(about.name)} learns from traffic: its images will hold remains of real requests\n`);
  }
  let image = about.image;
  if (options.wait === true || options.waitHot === true) image = await waitForImage(io, client, about.name, options);
  if (options.waitHot === true) image = await waitForHeat(io, client, about.name, options);
  if (options.json === true) await io.out(jsonLine({ ...about, image }));
}

/** The zip alone, or a form with it and the events. */
function deployBody(
  code: CodePackage,
  warmUp: WarmUp | undefined,
  say: (text: string) => void,
): Pick<RequestParts, "headers" | "pieces"> {
  async function* zip(): AsyncGenerator<Buffer> {
    let read = 0;
    yield* code.zip((bytes) => {
      read += bytes;
      say(`sending ${formatBytes(code.bytes)} of code … ${Math.floor((100 * read) / Math.max(read, code.bytes, 1))} %`);
    });
    say("unpacking its code …");
  }
  if (warmUp === undefined) return { headers: { "content-type": "application/zip" }, pieces: zip() };
  const boundary = `thaw-${randomUUID()}`;
  const part = (disposition: string): Buffer =>
    Buffer.from(`\r\n--${boundary}\r\nContent-Disposition: form-data; ${disposition}\r\n\r\n`);
  async function* form(): AsyncGenerator<Buffer> {
    yield part('name="code"; filename="code.zip"');
    yield* zip();
    yield part('name="warmUp"');
    yield Buffer.from(`${JSON.stringify(warmUp)}\r\n--${boundary}--\r\n`);
  }
  return { headers: { "content-type": `multipart/form-data; boundary=${boundary}` }, pieces: form() };
}

async function waitForImage(io: Io, client: Client, name: string, options: Options): Promise<ImageStatus> {
  const query = { timeout: String(options.waitTimeout) };
  const status = await withProgress(io, options, "making its image …", () =>
    client.json<ImageStatus>("GET", functionPath(name, "/ready"), "state", { query }),
  );
  if (options.json !== true) await io.out(`${printable(imageSentence(name, status))}\n`);
  return status;
}

/** Waits until the warm-up is over. WARM_UP_FAILED, IMAGE_NOT_READY where there is none in time, or will be none. */
async function waitForHeat(io: Io, client: Client, name: string, options: Options): Promise<ImageStatus> {
  const deadline = performance.now() + options.waitTimeout * 1000;
  const status = await withProgress(io, options, "warming it up …", async () => {
    for (;;) {
      const status = await client.json<ImageStatus>("GET", functionPath(name, "/ready"), "state");
      // Learning from traffic may go on for ever; the events do not.
      const { warmUp = status.heat?.state } = status.heat ?? {};
      if (warmUp !== "running") return status;
      if (performance.now() > deadline) throw stillCold(name, options.waitTimeout);
      await pause(LOOK_MS, undefined, { signal: io.stop }).catch(() => {
        throw new Interrupted();
      });
    }
  });
  const { image, heat, reason } = status;
  if ((heat?.warmUp ?? heat?.state) === "failed") {
    throw new ThawError("WARM_UP_FAILED", {
      what: `The warm-up of ${name} failed`,
      ...(heat?.reason === undefined ? {} : { why: heat.reason }),
      fix:
        image === undefined
          ? `\`thaw image inspect ${name}\` says why it has none; mend that, and deploy again`
          : "It serves from the image that it has. Mend the event or the handler, and deploy again",
    });
  }
  if (image === undefined || heat === undefined) {
    throw new ThawError("IMAGE_NOT_READY", {
      what: `${name} was not warmed up`,
      why: reason ?? "it has no image",
      fix: "See `thaw image inspect`",
    });
  }
  if (options.json !== true)
    await io.out(`${printable(`${name} is hot: image of ${formatBytes(image.bytesOnDisk)}, heat ${image.heat}`)}\n`);
  return status;
}

function stillCold(name: string, seconds: number): ThawError {
  return new ThawError("IMAGE_NOT_READY", {
    what: `The warm-up of ${name} is not over yet`,
    why: `it takes longer than ${seconds} s`,
    fix: "Raise --wait-timeout, or ask for fewer requests; it goes on, and `thaw ls` shows its end",
  });
}

function nothingToWaitFor(): ThawError {
  return new ThawError("INVALID_ARGUMENT", {
    what: "--wait-hot cannot be used",
    why: "no warm-up events are declared",
    fix: `Declare some in ${THAW_JSON} (warmUp) or with --warm-up FILE, or use --wait`,
  });
}

function imageSentence(name: string, { state, image, reason }: ImageStatus): string {
  if (state === "ready" && image !== undefined) {
    const { bytesOnDisk, report } = image;
    return `${name} is ready: image of ${formatBytes(bytesOnDisk)}, stopped for ${report.stoppedMs.toFixed(1)} ms while it was made`;
  }
  const why = reason === undefined ? "" : ` (${reason})`;
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
