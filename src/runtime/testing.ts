/**
 * For tests: a runtime as a plain child process, without sandbox, keeper or freezing.
 * Descriptor 3 is one end of a socket pair, as in the sandbox.
 */
import { type ChildProcess, spawn } from "node:child_process";
import type { Socket } from "node:net";
import { fileURLToPath } from "node:url";
import { encodeFrame, FrameParser, type FunctionFrame, type InvokeHeader, type ServerHeader } from "./frames.js";

/** Where the runtimes' own files are in the source tree. */
export const SOURCE_DIR = fileURLToPath(new URL("../../src/runtime/", import.meta.url));

export interface PlainOptions {
  readonly interpreter: string;
  readonly flags?: readonly string[];
  /** `node/bootstrap.cjs` or `python/bootstrap.py`. */
  readonly bootstrap: string;
  readonly taskRoot: string;
  readonly handler: string;
  readonly env?: Readonly<Record<string, string>>;
}

/** Each reads 64 KiB, which is what a pipe holds. */
const OUTPUT_TURNS = 3;

/** One running runtime. `dispose` ends it. */
export class PlainRuntime {
  readonly process: ChildProcess;
  /** stdout and stderr so far. */
  output = "";
  /** Exit code, or the signal's name. */
  readonly exited: Promise<number | string>;
  readonly #socket: Socket;
  readonly #parser = new FrameParser();
  readonly #frames: FunctionFrame[] = [];
  readonly #waiting: { resolve: (frame: FunctionFrame) => void; reject: (error: unknown) => void }[] = [];
  #ended: unknown;

  constructor(options: PlainOptions) {
    this.process = spawn(options.interpreter, [...(options.flags ?? []), SOURCE_DIR + options.bootstrap], {
      stdio: ["ignore", "pipe", "pipe", "pipe"],
      cwd: options.taskRoot,
      env: {
        PATH: "/usr/bin:/bin",
        LAMBDA_TASK_ROOT: options.taskRoot,
        _HANDLER: options.handler,
        PYTHONDONTWRITEBYTECODE: "1",
        AWS_LAMBDA_LOG_GROUP_NAME: "/aws/lambda/plain",
        AWS_LAMBDA_LOG_STREAM_NAME: "[1]",
        ...options.env,
      },
    });
    this.#socket = this.process.stdio[3] as Socket;
    this.#socket.on("data", (chunk: Buffer) => this.#take(chunk));
    this.#socket.on("error", () => {}); // a function that ended; `exited` tells
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream?.setEncoding("utf8").on("data", (text: string) => {
        this.output += text;
      });
    }
    this.exited = new Promise((resolve) => {
      this.process.on("close", (code, signal) => {
        this.#end(new Error(`the runtime ended (${code ?? signal}) and said: ${this.output}`));
        resolve(code ?? signal ?? "unknown");
      });
    });
  }

  /** The next frame from the function, or the reason why none will come. */
  next(): Promise<FunctionFrame> {
    const frame = this.#frames.shift();
    if (frame !== undefined) return Promise.resolve(frame);
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  send(header: ServerHeader, body?: Buffer | string): void {
    for (const bytes of encodeFrame(header, body)) this.#socket.write(bytes);
  }

  /** Sends one request with sensible defaults and waits for its answer, and for what was printed before it. */
  async invoke(body: Buffer | string, header: Partial<InvokeHeader> = {}): Promise<FunctionFrame> {
    this.send(
      {
        type: "invoke",
        requestId: "request-1",
        deadlineMs: Date.now() + 5000,
        functionName: "plain",
        functionVersion: "1",
        memoryMb: 128,
        invokedArn: "arn:aws:lambda:us-east-1:000000000000:function:plain",
        ...header,
      },
      body,
    );
    const frame = await this.next();
    // It was in the pipes when the answer came, and is read in the next turns, whichever of the descriptors was first in this one.
    for (let turn = 0; turn < OUTPUT_TURNS; turn++) await new Promise((resolve) => setImmediate(resolve));
    return frame;
  }

  /** Ends the process; resolves when it is gone. Idempotent. */
  async dispose(): Promise<void> {
    this.process.kill("SIGKILL");
    await this.exited;
    this.#socket.destroy();
  }

  #take(chunk: Buffer): void {
    try {
      for (const frame of this.#parser.push(chunk)) {
        const waiter = this.#waiting.shift();
        if (waiter === undefined) this.#frames.push(frame);
        else waiter.resolve(frame);
      }
    } catch (error) {
      this.#end(error);
    }
  }

  #end(error: unknown): void {
    this.#ended ??= error;
    for (const waiter of this.#waiting.splice(0)) waiter.reject(this.#ended);
  }
}
