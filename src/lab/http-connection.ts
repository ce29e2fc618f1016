/**
 * One kept-alive HTTP/1.1 connection over a raw socket, one request at a time. A general client spends 100–200 us
 * a request on its own pooling and streams, which is as much as a warm function takes; this one spends about 20.
 *
 * It understands what our gateway sends: a status line, headers, and a body with Content-Length (or none for 204). Anything else
 * is an error with its reason, not a guess.
 */
import { connect, type Socket } from "node:net";

export interface HttpRequest {
  readonly method: "GET" | "POST" | "DELETE";
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
}

export interface HttpResponse {
  readonly status: number;
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
  /** From the call that sends the request until the last byte of the response is in hand, microseconds. */
  readonly us: number;
}

const HEAD_END = Buffer.from("\r\n\r\n");
const HEAD_BYTES_MAX = 65_536;
const REQUEST_MS_MAX = 30_000;

interface Waiting {
  readonly startedUs: number;
  resolve(response: HttpResponse): void;
  reject(error: Error): void;
}

/** The bytes of a request, made once and sent often. */
export function encodeRequest(host: string, request: HttpRequest): Buffer {
  const body = Buffer.from(request.body ?? "");
  const lines = [`${request.method} ${request.path} HTTP/1.1`, `Host: ${host}`, `Content-Length: ${body.length}`];
  if (body.length > 0 && request.headers?.["Content-Type"] === undefined) lines.push("Content-Type: application/json");
  for (const [name, value] of Object.entries(request.headers ?? {})) lines.push(`${name}: ${value}`);
  return Buffer.concat([Buffer.from(`${lines.join("\r\n")}\r\n\r\n`), body]);
}

/** See the head of this file. */
export class HttpConnection {
  readonly #socket: Socket;
  #received: Buffer = Buffer.alloc(0);
  #waiting: Waiting | undefined;
  #broken: Error | undefined;

  private constructor(
    socket: Socket,
    readonly host: string,
  ) {
    this.#socket = socket;
    socket.on("data", (chunk: Buffer) => this.#onData(chunk));
    socket.on("error", (error) => this.#break(error));
    socket.on("close", () => this.#break(new Error("the server closed the connection")));
    socket.setTimeout(REQUEST_MS_MAX, () => {
      if (this.#waiting !== undefined) this.#break(new Error(`no answer within ${REQUEST_MS_MAX / 1000} s`));
    });
  }

  /** Connects to `http://host:port`. */
  static open(url: string): Promise<HttpConnection> {
    const { hostname, port, host } = new URL(url);
    return new Promise((resolve, reject) => {
      const socket = connect({ host: hostname, port: Number(port), noDelay: true });
      socket.once("error", reject);
      socket.once("connect", () => {
        socket.off("error", reject);
        resolve(new HttpConnection(socket, host));
      });
    });
  }

  /** Whether another request can be sent. */
  get usable(): boolean {
    return this.#broken === undefined;
  }

  request(request: HttpRequest): Promise<HttpResponse> {
    return this.send(encodeRequest(this.host, request));
  }

  /** Sends bytes of {@link encodeRequest}. A second call before the answer is a bug. */
  send(bytes: Buffer): Promise<HttpResponse> {
    if (this.#waiting !== undefined) throw new Error("bug: one request at a time on a connection");
    if (this.#broken !== undefined) return Promise.reject(this.#broken);
    return new Promise((resolve, reject) => {
      this.#waiting = { startedUs: performance.now() * 1000, resolve, reject };
      this.#socket.write(bytes);
    });
  }

  close(): void {
    this.#break(new Error("the connection was closed by us"));
  }

  #onData(chunk: Buffer): void {
    this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk]);
    try {
      if (this.#waiting === undefined) throw new Error("the server sent bytes that nobody asked for");
      const parsed = parseResponse(this.#received);
      if (parsed === undefined) return;
      if (parsed.bytes < this.#received.length) throw new Error("the server sent more than its Content-Length");
      const { resolve, startedUs } = this.#waiting;
      this.#waiting = undefined;
      this.#received = Buffer.alloc(0);
      resolve({ status: parsed.status, headers: parsed.headers, body: parsed.body, us: performance.now() * 1000 - startedUs });
    } catch (error) {
      this.#break(error as Error);
    }
  }

  #break(error: Error): void {
    this.#broken ??= error;
    this.#socket.destroy();
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.reject(this.#broken);
  }
}

interface Parsed {
  readonly status: number;
  readonly headers: Record<string, string>;
  readonly body: Buffer;
  readonly bytes: number;
}

/** Undefined while incomplete. Throws for what is not a response we understand. */
export function parseResponse(received: Buffer): Parsed | undefined {
  const end = received.indexOf(HEAD_END);
  if (end < 0) {
    if (received.length > HEAD_BYTES_MAX) throw new Error("the response's head is larger than 64 KiB");
    return undefined;
  }
  const [statusLine = "", ...lines] = received.toString("latin1", 0, end).split("\r\n");
  const status = /^HTTP\/1\.1 (\d{3})( |$)/.exec(statusLine)?.[1];
  if (status === undefined) throw new Error(`not an HTTP/1.1 response: ${JSON.stringify(statusLine.slice(0, 60))}`);
  const headers: Record<string, string> = {};
  for (const line of lines) {
    const colon = line.indexOf(":");
    if (colon <= 0) throw new Error(`not a header line: ${JSON.stringify(line.slice(0, 60))}`);
    headers[line.slice(0, colon).toLowerCase()] = line.slice(colon + 1).trim();
  }
  const length = headers["content-length"] ?? (status === "204" ? "0" : undefined);
  if (length === undefined || !/^\d+$/.test(length)) throw new Error(`response ${status} without a usable Content-Length`);
  const bodyAt = end + HEAD_END.length;
  const bytes = bodyAt + Number(length);
  if (received.length < bytes) return undefined;
  return { status: Number(status), headers, body: received.subarray(bodyAt, bytes), bytes };
}
