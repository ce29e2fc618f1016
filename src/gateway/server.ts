/**
 * The HTTP server: Lambda's Invoke and the control routes on one port. Fastify costs 12 us a request more than bare
 * `node:http` (42 against 30 us of CPU on the development machine, 60,000 requests of hello); at 5,000 requests a
 * second that is 6 % of a core, and it brings routing, body limits, an orderly close and tests without a port.
 */
import type { IncomingMessage, ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { finished } from "node:stream";
import Fastify, { type FastifyInstance, type FastifyPluginCallback, type FastifyReply, type FastifyRequest } from "fastify";
import { takeUuid } from "../base/ahead.js";
import { assert, isThawError, ThawError } from "../base/errors.js";
import { type Logger, silentLogger } from "../base/log.js";
import { formatBytes, KIB, MIB } from "../base/units.js";
import type { Platform } from "../platform/types.js";
import { packageTooLarge } from "../platform/uploads.js";
import { Bodies } from "./bodies.js";
import { addControlRoutes, CONTROL_PREFIX, type LastStart, metricsOf } from "./control.js";
import { DEPLOY_BYTES_MAX } from "./deploy-body.js";
import { ApiError, controlError, exceptionOf, lambdaError } from "./errors.js";
import { isLoopback, refuseForeignPages } from "./guard.js";
import { addInvokeRoute } from "./invoke.js";
import { EXPOSITION_TYPE, exposition } from "./prometheus.js";
import { type ReadingLimits, refuseOnSocket, refuseUnreadable } from "./unreadable.js";
import { isUploading, UPLOAD_MS } from "./upload.js";

/** How long a client may take to send its headers, and all of a request. The reply may take as long as the function. */
const HEADERS_TIMEOUT_MS = 10_000;
const REQUEST_TIMEOUT_MS = 120_000;
const KEEP_ALIVE_TIMEOUT_MS = 65_000;
/** How often Node looks for connections beyond those limits. */
const CHECK_INTERVAL_MS = 2_000;
/** Client context and environment are up to 4 KB each, the latter percent-encoded. */
const HEADER_BYTES_MAX = 64 * KIB;
const READING_LIMITS: ReadingLimits = {
  headerBytes: HEADER_BYTES_MAX,
  headersMs: HEADERS_TIMEOUT_MS,
  requestMs: REQUEST_TIMEOUT_MS,
};
/** What a reply may hold in memory however long its reader takes nothing of it; larger ones are cut after a time. */
const SMALL_REPLY_BYTES = 64 * KIB;
const READER_MS = 120_000;
/** Leaves descriptors for instances, where a process may have 20,000. */
const CONNECTIONS_MAX = 4_096;
/** The name or ARN in a path, percent-encoded. */
const PARAMETER_CHARACTERS_MAX = 768;
/** Of a request that is too large, how much is read, and for how long, before it is answered. */
const DRAIN_BYTES_MAX = 256 * MIB;
const DRAIN_MS_MAX = 5_000;
/** After the platform closed, how long replies may still be read. */
const CLOSE_GRACE_MS = 1_000;

/** What the gateway serves, and where it listens. */
export interface GatewayOptions {
  readonly platform: Platform;
  /** Default 127.0.0.1. */
  readonly host?: string;
  /** Default 0: any free port. */
  readonly port?: number;
  readonly log?: Logger;
  /** How long a client may take nothing of a large reply before its connection is cut, and up to as long again. Default {@link READER_MS}. */
  readonly readerMs?: number;
  /** Called once, when {@link RUN_IN_REQUESTS} requests were answered: what the way of a request needs has been loaded and run by then. */
  readonly onRunIn?: () => void;
}

export const RUN_IN_REQUESTS = 20;

/** A listening server. */
export interface Gateway {
  readonly app: FastifyInstance;
  readonly host: string;
  readonly port: number;
  /** Where clients on this machine reach it. */
  readonly url: string;
  /**
   * Stops listening at once, ends log streams, lets running requests end, then cuts what is left. `whileDraining` is awaited in
   * between: closing the platform there turns late requests into SHUTTING_DOWN. Idempotent.
   */
  close(whileDraining?: () => Promise<void>): Promise<void>;
}

/**
 * Requests whose client waits to be asked for the body (`Expect: 100-continue`). It is asked for one that is going to be read, and no
 * other. What it sends next where it was not asked may be the body all the same, so the connection ends with that reply.
 */
const unasked = new WeakSet<IncomingMessage>();

/** The last reply that a connection was promised; it comes behind all others. */
const replies = new WeakMap<Socket, ServerResponse>();
/** The one before it, where that is still to come. */
const earlierReplies = new WeakMap<ServerResponse, ServerResponse>();

function promise(socket: Socket, reply: ServerResponse): void {
  const before = replies.get(socket);
  if (before?.writableFinished === false) earlierReplies.set(reply, before);
  replies.set(socket, reply);
}

/**
 * Replies come in the order of their requests: what cannot be read may stand behind one that is being answered, and is not a part of that. Nor is
 * a request whose body it is.
 */
function afterReply(socket: Socket, then: () => void): void {
  const newest = replies.get(socket);
  const last = newest?.req.complete === false ? earlierReplies.get(newest) : newest;
  if (socket.writable && last?.req.complete === true && !last.writableFinished) last.once("close", then);
  else then();
}

/** The application without a port; tests use its `inject`. */
export function buildGateway(
  platform: Platform,
  options: Pick<GatewayOptions, "host" | "log" | "readerMs" | "onRunIn"> & { closing?: AbortSignal } = {},
): FastifyInstance {
  const { host = "127.0.0.1", log = silentLogger(), readerMs = READER_MS, onRunIn } = options;
  const { closing = new AbortController().signal } = options;
  let answered = 0;
  const boundToLoopback = isLoopback(host);
  const lastStarts = new Map<string, LastStart>();

  const app = Fastify({
    logger: false,
    bodyLimit: KIB,
    requestTimeout: REQUEST_TIMEOUT_MS,
    keepAliveTimeout: KEEP_ALIVE_TIMEOUT_MS,
    forceCloseConnections: "idle",
    return503OnClosing: false,
    genReqId: takeUuid,
    // Of an address that no route was looked up for: no hook runs, and no error handler.
    frameworkErrors: (error, request, reply) => void sendError(addressError(error), request, reply),
    clientErrorHandler: (error, socket) => {
      if (error.code === "ERR_HTTP_REQUEST_TIMEOUT" && isUploading(socket)) return;
      afterReply(socket, () => refuseUnreadable(error, socket, READING_LIMITS));
    },
    routerOptions: { maxParamLength: PARAMETER_CHARACTERS_MAX },
    http: {
      headersTimeout: HEADERS_TIMEOUT_MS,
      connectionsCheckingInterval: CHECK_INTERVAL_MS,
      maxHeaderSize: HEADER_BYTES_MAX,
      // Node's refusal would have no body: ours is in refuseUnmeetable.
      requireHostHeader: false,
    },
  });
  app.server.maxConnections = CONNECTIONS_MAX;
  // Beyond the limit a connection is closed without a word: those that are kept for a next request make room before.
  app.server.on("connection", () =>
    app.server.getConnections((_error, count) => {
      if (count >= app.server.maxConnections) app.server.closeIdleConnections();
    }),
  );
  app.server.prependListener("request", ({ socket }: IncomingMessage, response: ServerResponse) => promise(socket, response));
  app.server.on("connect", (request: IncomingMessage, socket: Socket) => refuseOnSocket(noOperation(request), socket));

  app.server.on("checkContinue", (request: IncomingMessage, response: ServerResponse) => {
    unasked.add(request);
    app.server.emit("request", request, response);
  });
  // Of another expectation; Node would answer by itself.
  app.server.on("checkExpectation", (request: IncomingMessage, response: ServerResponse) => {
    unasked.add(request);
    app.server.emit("request", request, response);
  });
  /** For the parser, which is given the request alone. */
  const replyTo = new WeakMap<IncomingMessage, ServerResponse>();
  app.addHook("preParsing", ({ raw, headers, routeOptions }, reply, body, done) => {
    replyTo.set(raw, reply.raw);
    if (unasked.has(raw)) {
      const { bodyLimit = KIB } = routeOptions;
      if (Number(headers["content-length"] ?? 0) > bodyLimit) throw tooLarge(bodyLimit);
      unasked.delete(raw);
      askForBody(reply.raw);
    }
    done(null, body);
  });

  app.removeAllContentTypeParsers();
  const bodies = new Bodies();
  app.addContentTypeParser("*", async ({ raw, routeOptions: { bodyLimit = KIB } }: FastifyRequest) => {
    const reply = replyTo.get(raw);
    assert(reply !== undefined, "each request has passed the hook");
    return bodies.read(raw, reply, bodyLimit, () => tooLarge(bodyLimit));
  });

  app.addHook("onRequest", (request, reply, done) => {
    nameRequest(request, reply);
    refuseUnmeetable(request.raw);
    refuseForeignPages(request.headers, boundToLoopback);
    // Before its body is read, which may be larger than anything that is read in vain.
    if (request.is404) throw noOperation(request);
    done();
  });
  app.addHook("onSend", (_request, { raw }, payload, done) => {
    const { length = 0 } = (payload ?? {}) as { length?: number };
    if (length > SMALL_REPLY_BYTES) raw.setTimeout(readerMs, () => raw.destroy());
    done(null, payload);
  });
  app.setErrorHandler(async (thrown, request, reply) => {
    const error = fromFastify(thrown);
    const isUpload = request.routeOptions.bodyLimit === DEPLOY_BYTES_MAX && !request.raw.complete;
    const unread = isUpload || exceptionOf(error) === "RequestTooLargeException" || isThawError(error, "RESOURCE_EXHAUSTED");
    if (unread && !unasked.has(request.raw)) {
      // To read what is left of a package may take minutes: who goes on with the connection has the reply first.
      if (isUpload && reply.raw.shouldKeepAlive) void drain(request.raw, UPLOAD_MS.pauseMs).then(() => endUnread(request.raw));
      else await drain(request.raw, DRAIN_MS_MAX);
    }
    // A refusal by a server that stops is in order: whoever watches the log should hear of what is not.
    if (exceptionOf(error) === "ServiceException" && !isThawError(error, "SHUTTING_DOWN"))
      log.error({ err: error, method: request.method, path: request.url }, "request failed");
    return sendError(error, request, reply);
  });

  addInvokeRoute(app, platform, (name, { start, result }) => {
    const { kind, us, loader, generation } = start;
    const how = { ...(loader === undefined ? {} : { loader }), ...(generation === undefined ? {} : { generation }) };
    // Nothing was started where the function could not be loaded.
    if (result.platformError !== "INIT_FAILED") lastStarts.set(name, { kind, us, ...how, atMs: Date.now() });
    answered += 1;
    if (answered === RUN_IN_REQUESTS) onRunIn?.();
  });
  const control: FastifyPluginCallback = (scope, _options, done) => {
    addControlRoutes(scope, { platform, lastStarts, closing });
    done();
  };
  app.register(control, { prefix: CONTROL_PREFIX });
  // Where Prometheus looks by itself.
  app.get("/metrics", async (_request, reply) => reply.type(EXPOSITION_TYPE).send(exposition(metricsOf(platform))));
  return app;
}

/** Builds the application and listens. INVALID_ARGUMENT when the address cannot be had. */
export async function openGateway({
  platform,
  host = "127.0.0.1",
  port = 0,
  log = silentLogger(),
  ...rest
}: GatewayOptions): Promise<Gateway> {
  const closing = new AbortController();
  const app = buildGateway(platform, { host, log, closing: closing.signal, ...rest });
  try {
    await app.listen({ host, port });
  } catch (error) {
    await app.close();
    throw cannotListen(error as NodeJS.ErrnoException, host, port);
  }
  const bound = (app.server.address() as AddressInfo).port;
  let closed: Promise<void> | undefined;

  async function close(whileDraining: () => Promise<void>): Promise<void> {
    closing.abort();
    const idle = app.close();
    try {
      await whileDraining();
    } finally {
      const cut = setTimeout(() => app.server.closeAllConnections(), CLOSE_GRACE_MS);
      await idle;
      clearTimeout(cut);
    }
  }
  return {
    app,
    host,
    port: bound,
    url: `http://${reachable(host)}:${bound}`,
    close: (whileDraining = async () => {}) => (closed ??= close(whileDraining)),
  };
}

/**
 * Behind the replies to earlier requests of the connection, and not when its own is there already, which the body came with: Node would write it
 * in the middle of that.
 */
function askForBody(response: ServerResponse): void {
  const ask = (): void => {
    if (!response.headersSent) response.writeContinue();
  };
  if (response.socket === null) response.once("socket", ask);
  else ask();
}

/** Lambda gives every reply the id of its request, errors too. */
function nameRequest({ id, url }: FastifyRequest, reply: FastifyReply): void {
  if (!isControl(url)) reply.header("x-amzn-requestid", id);
}

function sendError(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  nameRequest(request, reply);
  if (unasked.has(request.raw)) reply.header("connection", "close");
  const { status, headers, body } = isControl(request.url) ? controlError(error) : lambdaError(error);
  // As bytes: to a string Fastify would add a charset to the content type.
  return reply.code(status).headers(headers).send(Buffer.from(body));
}

/** What HTTP/1.1 says is to be refused. */
function refuseUnmeetable({ headers: { host, expect }, httpVersion, rawHeaders, url }: IncomingMessage): void {
  const what = "The request cannot be answered";
  let hosts = 0;
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const name = rawHeaders[at];
    if (name?.length === "host".length && name.toLowerCase() === "host") hosts++;
  }
  if (hosts > 1) throw new ThawError("INVALID_ARGUMENT", { what, why: "It has more than one Host header" });
  const named = url?.startsWith("/") === false ? /^https?:\/\/([^/?#]*)/i.exec(url)?.[1] : undefined;
  if (named !== undefined && named.toLowerCase() !== host?.toLowerCase())
    throw new ThawError("INVALID_ARGUMENT", { what, why: "Its address names another host than its Host header" });
  if (host === undefined && httpVersion === "1.1")
    throw new ThawError("INVALID_ARGUMENT", { what, why: "It has no Host header, which HTTP/1.1 demands" });
  if (expect !== undefined && expect.toLowerCase() !== "100-continue") {
    const fix = "Expect 100-continue, or nothing";
    throw new ThawError("INVALID_ARGUMENT", {
      what,
      why: `It expects ${JSON.stringify(expect.slice(0, 80))}, which is unknown`,
      fix,
    });
  }
}

function noOperation({ method, url }: Pick<IncomingMessage, "method" | "url">): ApiError {
  const path = url?.split("?", 1)[0] ?? "";
  return new ApiError("ResourceNotFoundException", `There is no operation ${method} ${path.slice(0, 200)}`);
}

/** An address that Fastify cannot take apart. */
function addressError(error: { readonly code: string }): ThawError {
  const why =
    error.code === "FST_ERR_MAX_PARAM_LENGTH"
      ? `The name in it has more than ${PARAMETER_CHARACTERS_MAX} characters`
      : "It is not UTF-8 in percent-encoding";
  return new ThawError("INVALID_ARGUMENT", { what: "The address cannot be read", why, cause: error });
}

/** Fastify's own refusals of a request, in our words. */
function fromFastify(error: unknown): unknown {
  if (error instanceof ThawError || error instanceof ApiError) return error;
  const { statusCode } = error as { statusCode?: number };
  if (statusCode === 415) return new ApiError("UnsupportedMediaTypeException", "The Content-Type cannot be read");
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) {
    return new ThawError("INVALID_ARGUMENT", { what: "The request cannot be read", why: (error as Error).message, cause: error });
  }
  return error;
}

/**
 * Reads what the client still sends, and forgets it. A reply to somebody who is writing is lost: the connection is closed behind it,
 * and bytes that nobody read turn that into a reset.
 */
function drain(body: IncomingMessage, ms: number): Promise<void> {
  return new Promise((resolve) => {
    let bytes = 0;
    const timer = setTimeout(resolve, ms);
    body.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > DRAIN_BYTES_MAX) resolve();
    });
    finished(body, () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

function endUnread(body: IncomingMessage): void {
  if (!body.complete) body.destroy();
}

function tooLarge(limit: number): ThawError {
  if (limit === DEPLOY_BYTES_MAX) return packageTooLarge();
  return new ThawError("PAYLOAD_TOO_LARGE", {
    what: "The request's payload is too large",
    why: `The limit is ${formatBytes(limit)}`,
    fix: "Pass a reference to the data instead of the data",
  });
}

function cannotListen(error: NodeJS.ErrnoException, host: string, port: number): ThawError {
  const taken = error.code === "EADDRINUSE";
  return new ThawError("INVALID_ARGUMENT", {
    what: `Cannot listen on ${host}:${port}`,
    why: taken ? "Another program listens there, perhaps another thaw" : error.message,
    fix: taken ? "Stop it, or choose another port with --port" : "Check --host and --port",
    cause: error,
  });
}

function isControl(url: string): boolean {
  return url.startsWith(`${CONTROL_PREFIX}/`);
}

/** An address that a client on this machine can use for what we are bound to. */
function reachable(host: string): string {
  if (host === "0.0.0.0") return "127.0.0.1";
  if (host === "::") return "[::1]";
  return host.includes(":") ? `[${host}]` : host;
}
