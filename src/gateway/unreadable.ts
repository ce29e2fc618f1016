/**
 * What never becomes a request: bytes that are not HTTP, headers beyond their limit, a request that does not come to its end. No route
 * and no hook sees it, so it is refused here, on its socket, in the shape of every other refusal.
 */
import { randomUUID } from "node:crypto";
import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import { ThawError } from "../base/errors.js";
import { formatBytes } from "../base/units.js";
import { lambdaError } from "./errors.js";

/** What a request must keep to. */
export interface ReadingLimits {
  /** Of its first line and its headers together. */
  readonly headerBytes: number;
  readonly headersMs: number;
  readonly requestMs: number;
}

/** Answers and closes the connection. */
export function refuseUnreadable(error: NodeJS.ErrnoException, socket: Socket, limits: ReadingLimits): void {
  if (error.code === "ECONNRESET") socket.destroy();
  else refuseOnSocket(refusal(error, limits), socket);
}

/** Where Node gives no reply to write to. */
export function refuseOnSocket(error: Error, socket: Socket): void {
  if (socket.writable) {
    const { status, headers, body } = lambdaError(error);
    const lines = [
      `HTTP/1.1 ${status} ${STATUS_CODES[status]}`,
      "connection: close",
      `content-length: ${Buffer.byteLength(body)}`,
      `x-amzn-requestid: ${randomUUID()}`,
    ];
    for (const [name, value] of Object.entries(headers)) lines.push(`${name}: ${value}`);
    socket.write(`${lines.join("\r\n")}\r\n\r\n${body}`);
  }
  socket.destroy();
}

function refusal(cause: NodeJS.ErrnoException, { headerBytes, headersMs, requestMs }: ReadingLimits): ThawError {
  if (cause.code === "HPE_HEADER_OVERFLOW") {
    return new ThawError("INVALID_ARGUMENT", {
      what: "The request cannot be read",
      why: `Its address and headers are larger than ${formatBytes(headerBytes)}`,
      fix: "Send a smaller client context, or a smaller environment",
      cause,
    });
  }
  if (cause.code === "ERR_HTTP_REQUEST_TIMEOUT") {
    return new ThawError("INVALID_ARGUMENT", {
      what: "The request did not come to its end",
      why: `Its headers may take ${headersMs / 1000} s, and all of it ${requestMs / 1000} s`,
      cause,
    });
  }
  return new ThawError("INVALID_ARGUMENT", { what: "The request cannot be read", why: "It is not HTTP/1.1", cause });
}
