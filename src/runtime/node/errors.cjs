"use strict";
/* What was thrown, as the error object of Lambda: `{errorType, errorMessage, trace}`. Anything can be thrown. */

const { stringify } = JSON;

/** An error of the runtime's own, with Lambda's name for it. The trace is the cause's, when there is one. */
function runtimeError(type, message, cause) {
  const error = new Error(message);
  error.name = `Runtime.${type}`;
  const frames = typeof cause?.stack === "string" ? cause.stack.split("\n").filter((line) => /^\s+at /.test(line)) : [];
  error.stack = [`${error.name}: ${message}`, ...frames].join("\n");
  return error;
}

/** Also what only looks like one: errors of other realms, and objects that libraries throw in their place. */
function isError(value) {
  if (value instanceof Error || Object.prototype.toString.call(value) === "[object Error]") return true;
  return (
    typeof value === "object" &&
    value !== null &&
    [value.name, value.message, value.stack].every((part) => typeof part === "string")
  );
}

/** Text of any value; never throws. */
function textOf(value) {
  try {
    if (typeof value === "object" && value !== null && !isError(value)) {
      const json = stringify(value);
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

/** More than that of an error is of no use to who reads a log, and may be whole sockets. */
const OWN_CHARACTERS_MAX = 32_768;

/** As JSON for the log: `told`, and what else a thrown error has of its own, such as `code`, `syscall` or the cause. Without that where it cannot be written. */
function inFull(thrown, told) {
  try {
    if (isError(thrown)) {
      const own = Object.fromEntries(Object.entries(thrown).filter(([name]) => !["name", "message", "stack"].includes(name)));
      const cause = Object.hasOwn(thrown, "cause")
        ? { cause: isError(thrown.cause) ? describe(thrown.cause) : thrown.cause }
        : {};
      const { trace, ...named } = told;
      const text = stringify({ ...named, ...own, ...cause, trace });
      if (text.length <= OWN_CHARACTERS_MAX) return text;
    }
  } catch {
    // As the reply has it.
  }
  return stringify(told);
}

module.exports = { runtimeError, describe, inFull, textOf };
