/**
 * HTTP to the server. Plain `node:http` rather than fetch: a function may take 15 minutes, and fetch gives up on a
 * reply's headers after five. Errors of control routes come back as the ThawError that the server threw.
 */
import { once } from "node:events";
import { type ClientRequest, request as httpRequest, type IncomingMessage, type OutgoingHttpHeaders } from "node:http";
import { request as httpsRequest } from "node:https";
import { setTimeout as pause } from "node:timers/promises";
import { ERROR_CODES, type ErrorCode, errorText, ThawError } from "../base/errors.js";
import { formatBytes, MIB } from "../base/units.js";
import { Interrupted } from "./io.js";

/** Where the server listens unless told otherwise. */
export const DEFAULT_PORT = 9470;
export const DEFAULT_URL = `http://127.0.0.1:${DEFAULT_PORT}`;

/** Of a reply that is kept whole: a list of ten thousand functions has ten megabytes. What another program sends may never end. */
export const REPLY_BYTES_MAX = 64 * MIB;

/** A complete reply. */
export interface Reply {
  readonly status: number;
  readonly headers: IncomingMessage["headers"];
  readonly body: Buffer;
}

/** What a request may carry. */
export interface RequestParts {
  readonly query?: Readonly<Record<string, string | readonly string[] | undefined>>;
  readonly headers?: OutgoingHttpHeaders;
  readonly body?: Buffer;
  /** A body that is too large for memory, as it comes. What it throws is thrown. */
  readonly pieces?: AsyncIterable<Buffer>;
}

/** One server, one run of the CLI. */
export class Client {
  readonly url: string;
  readonly #base: URL;
  readonly #stop: AbortSignal;

  /** INVALID_ARGUMENT when `url` is not one. */
  constructor(url: string, stop: AbortSignal) {
    this.#base = parseUrl(url);
    this.url = url;
    this.#stop = stop;
  }

  /** Sends a request and reads the whole reply, whatever its status. SERVER_UNREACHABLE when there is none. */
  async send(method: string, path: string, parts: RequestParts = {}): Promise<Reply> {
    const response = await this.#open(method, path, parts);
    return { status: response.statusCode ?? 0, headers: response.headers, body: await this.#read(response) };
  }

  /**
   * A control request whose reply is JSON. Throws what the server threw. Replies of ours have the member `has`: without it the success
   * is that of another program.
   */
  async json<T extends object>(method: string, path: string, has: keyof T & string, parts: RequestParts = {}): Promise<T> {
    const reply = await this.send(method, path, parts);
    if (!isSuccess(reply.status)) throw errorFrom(reply, this.url);
    let value: unknown;
    try {
      value = JSON.parse(reply.body.toString());
    } catch (error) {
      throw notThaw(this.url, `the reply to ${path} is not JSON`, error);
    }
    if (typeof value === "object" && value !== null && has in value) return value as T;
    throw notThaw(this.url, `the reply to ${path} has no "${has}"`);
  }

  /** A control request whose reply is that it was done. Throws what the server threw. */
  async done(method: string, path: string): Promise<void> {
    const reply = await this.send(method, path);
    if (!isSuccess(reply.status)) throw errorFrom(reply, this.url);
    if (reply.status !== 204) throw notThaw(this.url, `it replied to ${method} ${path} with status ${reply.status}, not 204`);
  }

  /** A control request whose reply is text that arrives over time. */
  async *stream(path: string, parts: RequestParts = {}): AsyncGenerator<Buffer> {
    const response = await this.#open("GET", path, parts);
    const status = response.statusCode ?? 0;
    const { headers } = response;
    if (!isSuccess(status)) throw errorFrom({ status, headers, body: await this.#read(response) }, this.url);
    if (headers["content-type"]?.startsWith("text/plain") !== true) {
      response.destroy();
      throw notThaw(this.url, `the reply to ${path} is not plain text`);
    }
    try {
      for await (const chunk of response) yield chunk as Buffer;
    } catch (error) {
      if (!this.#stop.aborted) throw this.#unreachable(error);
    }
  }

  async #read(response: IncomingMessage): Promise<Buffer> {
    const chunks: Buffer[] = [];
    let bytes = 0;
    try {
      for await (const chunk of response) {
        chunks.push(chunk as Buffer);
        bytes += (chunk as Buffer).length;
        if (bytes > REPLY_BYTES_MAX) break;
      }
    } catch (error) {
      throw this.#unreachable(error);
    }
    if (bytes > REPLY_BYTES_MAX) throw notThaw(this.url, `its reply has more than ${formatBytes(REPLY_BYTES_MAX)}`);
    return Buffer.concat(chunks);
  }

  #open(method: string, path: string, { query, headers, body, pieces }: RequestParts): Promise<IncomingMessage> {
    const url = new URL(this.#base.pathname.replace(/\/$/, "") + path, this.#base);
    for (const [name, value] of Object.entries(query ?? {})) {
      for (const one of Array.isArray(value) ? value : [value]) if (one !== undefined) url.searchParams.append(name, one);
    }
    const open = url.protocol === "https:" ? httpsRequest : httpRequest;
    // What is refused without its body is refused before that is sent. And who keeps the connection hears why the rest of it is refused.
    const length = body === undefined ? {} : { "content-length": body.length };
    const framing = pieces === undefined ? length : { expect: "100-continue", connection: "keep-alive" };
    return new Promise((done, failed) => {
      const request = open(url, {
        method,
        // One command, one or two requests: nothing to keep alive, and no socket that delays the exit.
        agent: false,
        signal: this.#stop,
        headers: { ...headers, ...framing },
      });
      request.on("response", done);
      request.on("error", (error) => failed(this.#unreachable(error)));
      if (pieces === undefined) request.end(body);
      else sendPieces(request, pieces).catch(failed);
    });
  }

  #unreachable(error: unknown): Error {
    if (this.#stop.aborted) return new Interrupted();
    const { code = "", message } = error as NodeJS.ErrnoException;
    if (code === "ECONNRESET" || code === "EPIPE") {
      return new ThawError("SERVER_UNREACHABLE", {
        what: `The server at ${this.url} went away before its reply was complete`,
        why: `It ended, or something on the way closed the connection (${message})`,
        fix: "See with `thaw ls` whether it runs; what was asked may have been done",
        cause: error,
      });
    }
    return new ThawError("SERVER_UNREACHABLE", {
      what: `No thaw server answers at ${this.url}`,
      why: WHY[code] ?? (errorText(error) || code),
      fix: "Start one with `thaw serve`, or name another with --url or THAW_URL",
      cause: error,
    });
  }
}

/** How long a server, or a proxy before it, may take to ask for a body that it is offered. Some never do. */
const ASKED_MS = 1_000;

/** Sends a body until its end, or until there is a reply to what was sent: then nobody wants the rest. Throws what `body` throws. */
async function sendPieces(request: ClientRequest, body: AsyncIterable<Buffer>): Promise<void> {
  const over = new AbortController();
  request.once("close", () => over.abort());
  request.once("response", (response: IncomingMessage) => {
    over.abort();
    response.once("end", () => request.destroy());
  });
  const { signal } = over;
  try {
    request.flushHeaders();
    await Promise.race([once(request, "continue", { signal }), pause(ASKED_MS, undefined, { signal })]);
    for await (const piece of body) {
      if (!request.write(piece)) await once(request, "drain", { signal });
      if (signal.aborted) return;
    }
    request.end();
  } catch (error) {
    if (signal.aborted) return;
    request.destroy();
    throw error;
  }
}

const WHY: Readonly<Record<string, string>> = {
  ECONNREFUSED: "The connection was refused: nothing listens there",
  EPROTO: "What listens there speaks no TLS: its URL begins with http://",
};

function parseUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url !== undefined && (url.protocol === "http:" || url.protocol === "https:")) return url;
  throw new ThawError("INVALID_ARGUMENT", {
    what: `${JSON.stringify(text)} is not the URL of a server`,
    fix: `It looks like ${DEFAULT_URL}; check --url and THAW_URL`,
  });
}

/** Redirects are none: the server sends no such reply, and following one could repeat a request elsewhere. */
function isSuccess(status: number): boolean {
  return status >= 200 && status < 300;
}

/** What answers is another program. */
export function notThaw(url: string, why: string, cause?: unknown): ThawError {
  return new ThawError("SERVER_UNREACHABLE", {
    what: `What answers at ${url} is not a thaw server`,
    why,
    fix: "Check --url and THAW_URL",
    cause,
  });
}

type PlainError = Partial<ReturnType<ThawError["toJSON"]>>;

interface ErrorBody {
  readonly error?: PlainError;
  readonly message?: unknown;
  readonly Message?: unknown;
}

/** The error in a reply: that of a control route, that beside Lambda's shape, or that of some other server. */
export function errorFrom(reply: Reply, url: string): Error {
  const header = reply.headers["x-thaw-error"];
  let plain: PlainError | undefined;
  let body: ErrorBody;
  try {
    body = JSON.parse(reply.body.toString()) as ErrorBody;
    plain = typeof header === "string" ? JSON.parse(header) : body.error;
  } catch (error) {
    return notThaw(url, `it replied with status ${reply.status} and no JSON`, error);
  }
  if (typeof plain?.what !== "string")
    return lambdaError(reply, body) ?? notThaw(url, `it replied with status ${reply.status} and no error of ours`);
  const { code, what, why, fix, details } = plain;
  if (!isCode(code)) return new Error(what);
  return new ThawError(code, {
    what,
    ...(why === undefined ? {} : { why }),
    ...(fix === undefined ? {} : { fix }),
    ...(details === undefined ? {} : { details: details as Record<string, unknown> }),
  });
}

/** A refusal that has no code of ours, only Lambda's shape. */
function lambdaError({ headers }: Reply, { message, Message }: ErrorBody): Error | undefined {
  const exception = headers["x-amzn-errortype"];
  const what = message ?? Message;
  return typeof what === "string" && typeof exception === "string" ? new Error(what) : undefined;
}

function isCode(code: unknown): code is ErrorCode {
  return typeof code === "string" && Object.hasOwn(ERROR_CODES, code);
}
