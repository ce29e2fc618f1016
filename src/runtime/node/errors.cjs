"use strict";
/* What was thrown, as the error object of Lambda: `{errorType, errorMessage, trace}`. Anything can be thrown. */

/** An error of the runtime's own, with Lambda's name for it. The trace is the cause's, when there is one. */
function runtimeError(type, message, cause) {
  const error = new Error(message);
  error.name = `Runtime.${type}`;
  const frames = typeof cause?.stack === "string" ? cause.stack.split("\n").filter((line) => /^\s+at /.test(line)) : [];
  error.stack = [`${error.name}: ${message}`, ...frames].join("\n");
  return error;
}

function isError(value) {
  return value instanceof Error || Object.prototype.toString.call(value) === "[object Error]";
}

/** Text of any value; never throws. */
function textOf(value) {
  try {
    if (typeof value === "object" && value !== null && !isError(value)) {
      const json = JSON.stringify(value);
      if (typeof json === "string") return json;
    }
    return String(value);
  } catch {
    try {
      return Object.prototype.toString.call(value);
    } catch {
      return "a value that cannot be shown";
    }
  }
}

/** Plain strings only, so that it can always be turned into JSON. Getters that throw and proxies are survived. */
function describe(thrown) {
  try {
    if (isError(thrown)) {
      return {
        errorType: textOf(thrown.name || "Error"),
        errorMessage: textOf(thrown.message),
        trace: typeof thrown.stack === "string" ? thrown.stack.split("\n") : [],
      };
    }
    return { errorType: thrown === null ? "null" : typeof thrown, errorMessage: textOf(thrown), trace: [] };
  } catch {
    return { errorType: "Error", errorMessage: "something was thrown whose name, message or stack cannot be read", trace: [] };
  }
}

module.exports = { runtimeError, describe, textOf };
