import { describe, expect, it } from "vitest";
import { ERROR_CODES, type ErrorCode, ThawError } from "../base/errors.js";
import { ApiError, controlError, EXCEPTION_OF, EXCEPTIONS, lambdaError } from "./errors.js";

describe("the table of errors", () => {
  it("maps every code, and no code that does not exist", () => {
    expect(Object.keys(EXCEPTION_OF).sort()).toEqual(Object.keys(ERROR_CODES).sort());
  });

  it("names only exceptions that have a status", () => {
    for (const exception of Object.values(EXCEPTION_OF)) expect(EXCEPTIONS[exception].status).toBeGreaterThanOrEqual(400);
  });

  it.each([
    ["FUNCTION_NOT_FOUND", 404, "ResourceNotFoundException", "User", "Message"],
    ["INVALID_PAYLOAD", 400, "InvalidRequestContentException", "User", "message"],
    ["INVALID_ARGUMENT", 400, "InvalidParameterValueException", "User", "message"],
    ["PAYLOAD_TOO_LARGE", 413, "RequestTooLargeException", "User", "message"],
    ["FUNCTION_EXISTS", 409, "ResourceConflictException", "User", "message"],
    ["IMAGE_NOT_READY", 409, "SnapStartNotReadyException", "User", "Message"],
    ["RUNTIME_MISSING", 502, "InvalidRuntimeException", "Service", "Message"],
    ["DATABASE_FAILED", 500, "ServiceException", "Service", "Message"],
  ] as const)("%s is a %i %s", (code, status, exception, type, member) => {
    const reply = lambdaError(new ThawError(code, { what: "the thing", why: "the reason" }));
    expect(reply.status).toBe(status);
    expect(reply.headers["x-amzn-errortype"]).toBe(exception);
    expect(JSON.parse(reply.body)).toEqual({ Type: type, [member]: "the thing. the reason" });
  });
});

describe("a throttled request", () => {
  const throttled = (details: Record<string, unknown>) =>
    lambdaError(new ThawError("TOO_MANY_INSTANCES", { what: "no instance is free", details }));

  it("says when to come back and which limit it met", () => {
    const reply = throttled({});
    expect(reply.status).toBe(429);
    expect(reply.headers["retry-after"]).toBe("1");
    expect(JSON.parse(reply.body)).toEqual({
      Type: "User",
      message: "no instance is free",
      Reason: "ConcurrentInvocationLimitExceeded",
      retryAfterSeconds: "1",
    });
  });

  it("tells the function's own limit from the server's", () => {
    expect(JSON.parse(throttled({ scope: "function" }).body).Reason).toBe("ReservedFunctionConcurrentInvocationLimitExceeded");
  });
});

describe("an error that nobody expected", () => {
  it("is a 500 that tells nothing of the inside", () => {
    const reply = lambdaError(new TypeError("secret detail"));
    expect(reply.status).toBe(500);
    expect(reply.body).not.toContain("secret");
    expect(controlError(new TypeError("secret detail")).body).not.toContain("secret");
  });
});

describe("an error of a control route", () => {
  it("carries code, what, why, fix and particulars", () => {
    const code: ErrorCode = "FUNCTION_EXISTS";
    const reply = controlError(new ThawError(code, { what: "a", why: "b", fix: "c", details: { name: "d" } }));
    expect(reply.status).toBe(409);
    expect(JSON.parse(reply.body)).toEqual({ error: { code, what: "a", why: "b", fix: "c", details: { name: "d" } } });
  });

  it("keeps the sentence of a refusal without a code of its own", () => {
    const reply = controlError(new ApiError("UnsupportedMediaTypeException", "gzip is not accepted"));
    expect(reply.status).toBe(415);
    expect(JSON.parse(reply.body).error.what).toBe("gzip is not accepted");
  });
});
