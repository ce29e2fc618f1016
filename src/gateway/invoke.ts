/**
 * Lambda's Invoke: `POST /2015-03-31/functions/{name or ARN}/invocations`. The payload passes as bytes in both
 * directions. A function's own error is a reply with status 200 and `X-Amz-Function-Error`; an error of the request or
 * of the server is an exception and becomes Lambda's error shape in `server.ts`.
 */
import type { IncomingHttpHeaders } from "node:http";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { errorText, ThawError } from "../base/errors.js";
import { parsePreference } from "../platform/preference.js";
import { startHeader, traceHeader } from "../platform/start-header.js";
import { type InvokeOutcome, type InvokeRequest, LIMITS, type Platform } from "../platform/types.js";
import { ApiError } from "./errors.js";
import { parseFunctionRef, quoted } from "./function-ref.js";

const EMPTY = Buffer.alloc(0);

/** Told of every outcome, for what the control routes show. */
export type OutcomeListener = (name: string, outcome: InvokeOutcome) => void;

/** A payload is JSON whatever it is called; Fastify would refuse a name that is no media type. */
function forgetContentType(request: FastifyRequest, _reply: FastifyReply, done: () => void): void {
  delete request.raw.headers["content-type"];
  done();
}

/** Adds the route. */
export function addInvokeRoute(app: FastifyInstance, platform: Platform, onOutcome: OutcomeListener): void {
  type Route = { Params: { reference: string }; Querystring: { Qualifier?: string | string[] } };

  const options = { bodyLimit: LIMITS.payloadBytes, onRequest: forgetContentType };
  app.post<Route>("/2015-03-31/functions/:reference/invocations", options, async (request, reply) => {
    const { headers, id: requestId } = request;
    const { Qualifier } = request.query;
    if (Array.isArray(Qualifier)) throw invalid("Qualifier", "it is given twice", "Give it once");
    const { name, qualifier, invokedAs } = parseFunctionRef(request.params.reference, Qualifier);
    const payload = payloadOf(request);

    const asked = { ...optionsFrom(headers), qualifier, invokedAs, requestId };
    const type = headers["x-amz-invocation-type"] ?? "RequestResponse";
    if (type === "DryRun") {
      await platform.check(name, payload, asked);
      return reply.code(204).send();
    }
    if (type !== "RequestResponse") throw unknownType(type);

    const outcome = await platform.invoke(name, payload, asked);
    onOutcome(name, outcome);
    return sendOutcome(reply, outcome, asked);
  });
}

function sendOutcome(reply: FastifyReply, outcome: InvokeOutcome, options: InvokeRequest): FastifyReply {
  const { result } = outcome;
  reply.headers({
    "content-type": "application/json",
    "x-amz-executed-version": outcome.executedVersion,
    "x-thaw-start": startHeader(outcome.start),
    // As browsers and proxies read it (W3C Server Timing): what a client's own connection takes is not in it.
    "server-timing": `total;dur=${result.totalMs.toFixed(3)}`,
  });
  if (result.functionError !== undefined) reply.header("x-amz-function-error", result.functionError);
  if (result.platformError !== undefined) reply.header("x-thaw-platform-error", result.platformError);
  if (outcome.logTail !== undefined) reply.header("x-amz-log-result", outcome.logTail.toString("base64"));
  if (options.trace === true) reply.header("x-thaw-trace", traceHeader(outcome));
  return reply.send(result.payload);
}

function payloadOf(request: FastifyRequest): Buffer {
  const encoding = request.headers["content-encoding"];
  if (encoding !== undefined && encoding !== "identity") {
    throw new ApiError(
      "UnsupportedMediaTypeException",
      `Content-Encoding ${quoted(encoding)} is not accepted. Send the payload as it is`,
    );
  }
  return request.body instanceof Buffer ? request.body : EMPTY;
}

/** Reads the headers that say how; INVALID_ARGUMENT names the header and what it may be. */
function optionsFrom(headers: IncomingHttpHeaders): InvokeRequest {
  const logType = one(headers, "x-amz-log-type") ?? "None";
  if (logType !== "None" && logType !== "Tail")
    throw invalid("X-Amz-Log-Type", `${quoted(logType)} is unknown`, "Use None or Tail");
  const trace = one(headers, "x-thaw-trace") ?? "0";
  if (trace !== "0" && trace !== "1") throw invalid("X-Thaw-Trace", `${quoted(trace)} is unknown`, "Use 1, or leave it out");
  const prefer = one(headers, "x-thaw-prefer");
  const context = one(headers, "x-amz-client-context");
  const traceId = one(headers, "x-amzn-trace-id");
  return {
    logTail: logType === "Tail",
    trace: trace === "1",
    ...(prefer === undefined ? {} : parsePreference(prefer)),
    ...(context === undefined ? {} : { clientContext: decodeContext(context) }),
    ...(traceId === undefined ? {} : { traceId }),
  };
}

/** The text in X-Amz-Client-Context, which must be JSON in base64. */
function decodeContext(encoded: string): string {
  // Buffer skips what is not base64; what is left then fails to be JSON, except by intent.
  const text = Buffer.from(encoded, "base64").toString();
  try {
    JSON.parse(text);
    return text;
  } catch (error) {
    throw new ApiError("InvalidRequestContentException", `X-Amz-Client-Context is not JSON in base64: ${errorText(error)}`);
  }
}

function one(headers: IncomingHttpHeaders, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value.join(",") : value;
}

function unknownType(type: string | string[]): ThawError {
  if (type === "Event") {
    return invalid("X-Amz-Invocation-Type", "Event is not available: this server has no queue yet", "Use RequestResponse");
  }
  return invalid("X-Amz-Invocation-Type", `${quoted(String(type))} is unknown`, "Use RequestResponse or DryRun");
}

function invalid(name: string, why: string, fix: string): ThawError {
  return new ThawError("INVALID_ARGUMENT", { what: `${name} cannot be used`, why, fix });
}
