/**
 * How errors look over HTTP. One table gives every code of `src/base/errors.ts` a Lambda exception, another gives
 * every exception its status and the case of its message member, which differs from one exception to the next in
 * Lambda's service model. Invoke replies carry Lambda's shape, control replies the error itself.
 */
import { asciiJson } from "../base/ascii-json.js";
import { type ErrorCode, errorText, ThawError } from "../base/errors.js";

/** Lambda's exceptions that this server uses: HTTP status and the exact spelling of the message member. */
export const EXCEPTIONS = {
  InvalidParameterValueException: { status: 400, member: "message" },
  InvalidRequestContentException: { status: 400, member: "message" },
  SnapStartException: { status: 400, member: "Message" },
  // Common to all of AWS's APIs rather than Lambda's own.
  AccessDeniedException: { status: 403, member: "Message" },
  ResourceNotFoundException: { status: 404, member: "Message" },
  ResourceConflictException: { status: 409, member: "message" },
  SnapStartNotReadyException: { status: 409, member: "Message" },
  RequestTooLargeException: { status: 413, member: "message" },
  UnsupportedMediaTypeException: { status: 415, member: "message" },
  TooManyRequestsException: { status: 429, member: "message" },
  ServiceException: { status: 500, member: "Message" },
  InvalidRuntimeException: { status: 502, member: "Message" },
} as const;

/** One of {@link EXCEPTIONS}. */
export type ExceptionName = keyof typeof EXCEPTIONS;

/**
 * The exception of each code. What a function does wrong while it runs is a reply with status 200 and
 * `X-Amz-Function-Error`; those codes stand here for the operations that cannot reply so, such as waiting for an image.
 */
export const EXCEPTION_OF: Readonly<Record<ErrorCode, ExceptionName>> = {
  UNSUPPORTED_PLATFORM: "SnapStartException",
  NATIVE_MISSING: "ServiceException",
  KEEPER_FAILED: "ServiceException",
  SANDBOX_FAILED: "ServiceException",
  RUNTIME_MISSING: "InvalidRuntimeException",
  RESOURCE_EXHAUSTED: "ServiceException",
  INVALID_ARGUMENT: "InvalidParameterValueException",
  INVALID_PAYLOAD: "InvalidRequestContentException",
  PAYLOAD_TOO_LARGE: "RequestTooLargeException",
  FUNCTION_NOT_FOUND: "ResourceNotFoundException",
  FUNCTION_EXISTS: "ResourceConflictException",
  TOO_MANY_INSTANCES: "TooManyRequestsException",
  NO_INSTANCE: "ResourceConflictException",
  PREFERENCE_UNAVAILABLE: "ResourceConflictException",
  CODE_INVALID: "InvalidParameterValueException",
  INIT_FAILED: "ResourceConflictException",
  INSTANCE_EXITED: "ServiceException",
  OUT_OF_MEMORY: "ServiceException",
  TIMEOUT: "ServiceException",
  PROTOCOL_VIOLATION: "ServiceException",
  RESPONSE_TOO_LARGE: "ServiceException",
  FREEZE_REFUSED: "SnapStartException",
  FREEZE_FAILED: "ServiceException",
  THAW_FAILED: "ServiceException",
  PAGER_LOST: "ServiceException",
  IMAGE_DAMAGED: "ServiceException",
  IMAGE_MISMATCH: "ServiceException",
  IMAGE_NOT_READY: "SnapStartNotReadyException",
  WARM_UP_FAILED: "ResourceConflictException",
  HIBERNATE_REFUSED: "ResourceConflictException",
  HIBERNATE_FAILED: "ServiceException",
  SERVER_UNREACHABLE: "ServiceException",
  DATABASE_FAILED: "ServiceException",
  SHUTTING_DOWN: "ServiceException",
};

/** Seconds after which a throttled client may try again. Starts take milliseconds: the least that the header can say. */
const RETRY_AFTER_SECONDS = 1;

/** A refusal that has a Lambda exception but no code of ours, such as a content encoding. */
export class ApiError extends Error {
  constructor(
    readonly exception: ExceptionName,
    message: string,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

/** A complete error reply. */
export interface ErrorReply {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

/** The exception that fits whatever was thrown; what is not ours is a ServiceException. */
export function exceptionOf(error: unknown): ExceptionName {
  if (error instanceof ApiError) return error.exception;
  if (error instanceof ThawError) return EXCEPTION_OF[error.code];
  return "ServiceException";
}

/** What may be told: our own sentences, and nothing of an error that we did not expect. */
function told(error: unknown): string {
  return error instanceof ThawError || error instanceof ApiError
    ? errorText(error)
    : "An error inside the server; its log has the particulars.";
}

function headersOf(exception: ExceptionName): Record<string, string> {
  return {
    "content-type": "application/json",
    "x-amzn-errortype": exception,
    ...(exception === "TooManyRequestsException" ? { "retry-after": String(RETRY_AFTER_SECONDS) } : {}),
  };
}

/** Particulars beyond this are left out of the header. */
const ERROR_HEADER_BYTES_MAX = 4096;

/**
 * The error as Lambda's API shapes it: `{Type, Message | message}`, with `Reason` when throttled. `X-Thaw-Error` adds our code, what,
 * why and fix as JSON, which SDKs ignore and the CLI prints.
 */
export function lambdaError(error: unknown): ErrorReply {
  const exception = exceptionOf(error);
  const { status, member } = EXCEPTIONS[exception];
  const body: Record<string, string> = { Type: status >= 500 ? "Service" : "User", [member]: told(error) };
  if (exception === "TooManyRequestsException") {
    body.Reason = throttleReason(error);
    body.retryAfterSeconds = String(RETRY_AFTER_SECONDS);
  }
  const headers = headersOf(exception);
  if (error instanceof ThawError) {
    const full = asciiJson(error);
    headers["x-thaw-error"] =
      full.length <= ERROR_HEADER_BYTES_MAX ? full : asciiJson({ code: error.code, what: error.what.slice(0, 500) });
  }
  return { status, headers, body: JSON.stringify(body) };
}

/** Lambda tells a limit of the function from one of the whole account; here the whole server. */
function throttleReason(error: unknown): string {
  const scope = error instanceof ThawError ? error.details.scope : undefined;
  return scope === "function" ? "ReservedFunctionConcurrentInvocationLimitExceeded" : "ConcurrentInvocationLimitExceeded";
}

/** The error as control routes send it: `{"error": {code, what, why?, fix?, details}}`; the CLI rebuilds the ThawError. */
export function controlError(error: unknown): ErrorReply {
  const exception = exceptionOf(error);
  const plain =
    error instanceof ThawError
      ? error.toJSON()
      : { code: error instanceof ApiError ? "INVALID_ARGUMENT" : "INTERNAL", what: told(error), details: {} };
  return { status: EXCEPTIONS[exception].status, headers: headersOf(exception), body: JSON.stringify({ error: plain }) };
}
