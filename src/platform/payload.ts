/** Payloads, and what comes beside them, are handed to functions as they came; here they are only checked. */
import { isUtf8 } from "node:buffer";
import { errorText, ThawError } from "../base/errors.js";
import { nextTurn } from "../base/turns.js";
import { KIB } from "../base/units.js";
import { FRAME_HEADER_BYTES_MAX } from "../runtime/frames.js";
import { JsonCheck } from "./json-check.js";
import { type InvokeRequest, LIMITS } from "./types.js";

/** The rest is for what a header says of every request. */
const CONTEXT_BYTES_MAX = FRAME_HEADER_BYTES_MAX - 4 * KIB;

/** More is checked in turns of the event loop, in pieces of this length: at most some milliseconds each. */
const AT_ONCE_BYTES = 64 * KIB;
const BYTE_ORDER_MARK = Buffer.from("\ufeff");
const MARKED = "it begins with a byte order mark (U+FEFF), which cannot be seen";

/**
 * The bytes to send: `{}` for an empty payload. INVALID_PAYLOAD when it is not JSON in UTF-8, PAYLOAD_TOO_LARGE beyond 6 MB.
 * JSON.parse is the check: it is native, and for the usual payload of some hundred bytes takes about a microsecond. Of a large one a promise ({@link JsonCheck}).
 */
export function checkPayload(payload: Buffer | string): Buffer | string | Promise<Buffer | string> {
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
  if (bytes > AT_ONCE_BYTES) return checkLarge(payload);
  const text = typeof payload === "string" ? payload : payload.toString("utf8");
  try {
    JSON.parse(text);
  } catch (error) {
    // V8 would show it as it looks: as nothing.
    if (text.startsWith("\ufeff")) throw invalid(MARKED);
    throw invalid(errorText(error).slice(0, 200));
  }
  return payload;
}

async function checkLarge(payload: Buffer | string): Promise<Buffer | string> {
  const bytes = typeof payload === "string" ? Buffer.from(payload) : payload;
  const json = new JsonCheck();
  for (let from = 0; from < bytes.length; from += AT_ONCE_BYTES) {
    await nextTurn();
    if (json.write(bytes.subarray(from, from + AT_ONCE_BYTES))) continue;
    if (bytes.subarray(0, BYTE_ORDER_MARK.length).equals(BYTE_ORDER_MARK)) throw invalid(MARKED);
    throw invalid(`no JSON text goes on with its byte ${json.bytes} (${JSON.stringify(characterAt(bytes, json.bytes))})`);
  }
  if (!json.whole) throw invalid(`it ends, after ${bytes.length} bytes, before its value does`);
  return payload;
}

/** In UTF-8, of four bytes at most. */
function characterAt(bytes: Buffer, at: number): string {
  return String.fromCodePoint(bytes.toString("utf8", at, at + 4).codePointAt(0) ?? 0);
}

/** INVALID_ARGUMENT when client context and trace id are too large for the header in which they reach the function. Before anything is started. */
export function checkContext({ clientContext, traceId }: InvokeRequest): void {
  if (clientContext === undefined && traceId === undefined) return;
  const bytes = Buffer.byteLength(JSON.stringify([clientContext, traceId]));
  if (bytes <= CONTEXT_BYTES_MAX) return;
  throw new ThawError("INVALID_ARGUMENT", {
    what: "The request's context is too large",
    why: `client context and trace id have ${bytes} bytes as JSON texts, and the limit is ${CONTEXT_BYTES_MAX}`,
    fix: "Send a smaller client context",
  });
}

function invalid(why: string): ThawError {
  return new ThawError("INVALID_PAYLOAD", {
    what: "The payload is not valid JSON",
    why,
    fix: `Send a JSON value, such as {"name":"world"}`,
  });
}
