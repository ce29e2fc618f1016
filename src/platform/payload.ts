/** Payloads are handed to functions as they came; here they are only checked. */
import { isUtf8 } from "node:buffer";
import { errorText, ThawError } from "../base/errors.js";
import { LIMITS } from "./types.js";

/**
 * The bytes to send: `{}` for an empty payload. INVALID_PAYLOAD when it is not JSON in UTF-8, PAYLOAD_TOO_LARGE beyond 6 MB.
 * JSON.parse is the check: it is native, and for the usual payload of some hundred bytes takes about a microsecond.
 */
export function checkPayload(payload: Buffer | string): Buffer | string {
  if (payload.length === 0) return "{}";
  const bytes = typeof payload === "string" ? Buffer.byteLength(payload) : payload.length;
  if (bytes > LIMITS.payloadBytes) {
    throw new ThawError("PAYLOAD_TOO_LARGE", {
      what: "The payload was not accepted",
      why: `it has ${bytes} bytes, and the limit is ${LIMITS.payloadBytes}`,
      fix: "Store the data elsewhere and send a reference",
      details: { bytes, limit: LIMITS.payloadBytes },
    });
  }
  if (typeof payload !== "string" && !isUtf8(payload)) throw invalid("it is not UTF-8");
  try {
    JSON.parse(typeof payload === "string" ? payload : payload.toString("utf8"));
  } catch (error) {
    throw invalid(errorText(error).slice(0, 200));
  }
  return payload;
}

function invalid(why: string): ThawError {
  return new ThawError("INVALID_PAYLOAD", {
    what: "The payload is not valid JSON",
    why,
    fix: `Send a JSON value, such as {"name":"world"}`,
  });
}
