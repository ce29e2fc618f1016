/**
 * Keeps web pages out. A server on loopback is within reach of every page that the user's browser opens: a page may post
 * to 127.0.0.1, or point a name of its own at it (DNS rebinding). Programs send no `Origin`; a browser's request passes
 * only from a page of this very server. Bound to loopback, the server answers to loopback names alone.
 */
import type { IncomingHttpHeaders } from "node:http";
import { isIP } from "node:net";
import { ApiError } from "./errors.js";

/** Whether an address to bind to, or a name in a Host header, means this machine. */
export function isLoopback(name: string): boolean {
  const host = name.replace(/^\[|\]$/g, "").toLowerCase();
  return host === "localhost" || host.endsWith(".localhost") || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}

/** The Host header that was found to mean this machine last: nearly all requests have the same. */
let knownHost: string | undefined;

/** Refuses (403) a request that a foreign web page may have caused. */
export function refuseForeignPages(headers: IncomingHttpHeaders, boundToLoopback: boolean): void {
  const host = headers.host;
  // HTTP/1.0 clients send no Host; browsers always do.
  if (host === undefined) return;
  if (boundToLoopback && host !== knownHost && !isLoopback(host.replace(/:\d*$/, ""))) {
    throw new ApiError(
      "AccessDeniedException",
      `This server listens on loopback only and does not answer to the host name ${JSON.stringify(host.slice(0, 80))}. Use 127.0.0.1 or localhost`,
    );
  }
  if (boundToLoopback) knownHost = host;
  const { origin } = headers;
  if (origin !== undefined && origin !== `http://${host}` && origin !== `https://${host}`) {
    throw new ApiError("AccessDeniedException", "Requests from pages of other origins are not accepted");
  }
}
