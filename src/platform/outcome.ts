/**
 * Errors of the function, not of the platform, are results. When an instance cannot even load its function, the
 * request that asked for it gets the same kind of answer as one whose handler failed.
 */
import { isThawError, type ThawError } from "../base/errors.js";
import type { InvokeResult, StartResult } from "../engine/types.js";
import { wholeLines } from "./logs.js";

const FUNCTION_FAULTS = ["INIT_FAILED", "INSTANCE_EXITED", "OUT_OF_MEMORY", "TIMEOUT", "PROTOCOL_VIOLATION"] as const;
type FunctionFault = (typeof FUNCTION_FAULTS)[number];

/** Whether a start failed through the function's own doing. */
export function isFunctionFault(error: unknown): error is ThawError & { readonly code: FunctionFault } {
  return isThawError(error) && FUNCTION_FAULTS.some((code) => code === error.code);
}

/**
 * The answer to a request whose boot failed. The engine's error may carry `details.error` (the error object that the runtime
 * reported, and printed), else `details.type` (Lambda's name for what happened), and `details.logs` (what was printed while loading).
 */
export function bootFailure(
  error: ThawError & { readonly code: FunctionFault },
  us: number,
  requestId: string,
): { result: InvokeResult; start: StartResult } {
  const reported = error.details["error"];
  const unreported = {
    errorType: error.details["type"] ?? error.code,
    errorMessage: `RequestId: ${requestId} Error: ${error.message}`,
  };
  const isReported = typeof reported === "object" && reported !== null;
  const payload = isReported ? reported : unreported;
  const ms = us / 1000;
  return {
    result: {
      payload: Buffer.from(JSON.stringify(payload)),
      functionError: "Unhandled",
      platformError: error.code,
      logs: Buffer.from(printedAtLoad(error) + (isReported ? "" : `${unreported.errorMessage}\n`)),
      handlerMs: 0,
      totalMs: ms,
      maxMemoryMb: 0,
      alive: false,
    },
    start: { kind: "boot", us: Math.round(us), phases: [], waitUs: 0, prefetchedPages: 0 },
  };
}

/** What a function printed before its load failed, its last line ended. */
export function printedAtLoad(error: unknown): string {
  const printed = isThawError(error, "INIT_FAILED") ? error.details["logs"] : undefined;
  return typeof printed === "string" ? wholeLines(Buffer.from(printed)) : "";
}
