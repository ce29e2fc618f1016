/**
 * Errors of the function, not of the platform, are results. When an instance cannot even load its function, the
 * request that asked for it gets the same kind of answer as one whose handler failed.
 */
import { isThawError, type ThawError } from "../base/errors.js";
import type { InvokeResult, StartResult } from "../engine/types.js";

const FUNCTION_FAULTS = ["INIT_FAILED", "INSTANCE_EXITED", "OUT_OF_MEMORY", "TIMEOUT", "PROTOCOL_VIOLATION"] as const;
type FunctionFault = (typeof FUNCTION_FAULTS)[number];

/** Whether a start failed through the function's own doing. */
export function isFunctionFault(error: unknown): error is ThawError & { readonly code: FunctionFault } {
  return isThawError(error) && FUNCTION_FAULTS.some((code) => code === error.code);
}

/**
 * The answer to a request whose boot failed. The engine's error may carry `details.error` (the error object that the runtime
 * reported) and `details.logs` (what was printed while loading).
 */
export function bootFailure(
  error: ThawError & { readonly code: FunctionFault },
  us: number,
): { result: InvokeResult; start: StartResult } {
  const reported = error.details["error"];
  const printed = error.details["logs"];
  const payload =
    typeof reported === "object" && reported !== null ? reported : { errorType: error.code, errorMessage: error.message };
  const ms = us / 1000;
  return {
    result: {
      payload: Buffer.from(JSON.stringify(payload)),
      functionError: "Unhandled",
      platformError: error.code,
      logs: Buffer.from(typeof printed === "string" || Buffer.isBuffer(printed) ? printed : ""),
      handlerMs: 0,
      totalMs: ms,
      maxMemoryMb: 0,
      alive: false,
    },
    start: { kind: "boot", us: Math.round(us), phases: [], waitUs: 0, prefetchedPages: 0 },
  };
}
