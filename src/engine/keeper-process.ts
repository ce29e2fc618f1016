/** The keeper as a child process (`native/build/keeper`): its socket, its last words, how it ended. */
import { type ChildProcess, spawn } from "node:child_process";
import type { Socket } from "node:net";
import { errorText, ThawError } from "../base/errors.js";

/** How it is started. */
export interface ProcessOptions {
  /** Path of the keeper's binary. */
  readonly binary: string;
  /** Lines that the keeper and its helpers wrote to stderr. */
  readonly onStderr?: (text: string) => void;
}

const STDERR_KEPT = 4096;
/** Between the end of its socket and what is known of its own. */
const ENDING_MS = 500;
const END_MS_MAX = 20_000;

/** See above. */
export class KeeperProcess {
  readonly socket: Socket;
  /** Resolves when it has ended, and `onEnd` was called. */
  readonly ended: Promise<void>;
  readonly #child: ChildProcess;
  readonly #binary: string;
  #stderr = "";

  /** @param onEnd called with a reason when it ends or cannot be talked to, perhaps more than once; the first one counts */
  constructor(
    { binary, onStderr }: ProcessOptions,
    onData: (chunk: Buffer) => void,
    onEnd: (why: string, cause?: unknown) => void,
  ) {
    this.#binary = binary;
    // Of its own session: the terminal's Ctrl-C is for the server, which then ends the keeper in order.
    this.#child = spawn(binary, [], { stdio: ["ignore", "ignore", "pipe", "pipe"], detached: true, env: {} });
    this.socket = this.#child.stdio[3] as Socket;
    this.socket.on("data", onData);
    // A keeper that is killed shows here first when it leaves bytes unread; how it ended is known a moment later.
    this.socket.on("error", (error) => void setTimeout(() => onEnd("its socket broke", error), ENDING_MS).unref());
    this.#child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-STDERR_KEPT);
      onStderr?.(text);
    });
    this.ended = new Promise((resolve) => {
      this.#child.once("error", (error) => {
        onEnd("it could not be started", error);
        resolve();
      });
      this.#child.once("close", (code, signal) => {
        onEnd(signal === null ? `it exited with code ${code}` : `it was killed by ${signal}`);
        resolve();
      });
    });
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }

  /** Lets it end in order, which it does when its socket is closed. Idempotent. */
  async end(): Promise<void> {
    this.socket.end();
    const timer = setTimeout(() => this.kill(), END_MS_MAX);
    await this.ended;
    clearTimeout(timer);
  }

  /** Why nothing can be asked of it any more: KEEPER_FAILED with what it said, NATIVE_MISSING. */
  error(why: string, cause?: unknown): ThawError {
    const words = this.#stderr.trim();
    const missing = (cause as NodeJS.ErrnoException | undefined)?.code === "ENOENT";
    return new ThawError(missing ? "NATIVE_MISSING" : "KEEPER_FAILED", {
      what: `The keeper (${this.#binary}) failed`,
      why: `${why}${cause === undefined ? "" : ` (${errorText(cause)})`}${words === "" ? "" : `; it said: ${words}`}`,
      fix: missing ? "run `npm run build`" : "start the server again; `thaw doctor` checks this machine",
      cause,
    });
  }
}
