/**
 * How a reply says how its instance came to be: `X-Thaw-Start`, one line for everybody, and `X-Thaw-Trace`, all figures
 * as JSON for whoever asked. Header values are plain ASCII: what else a reason may contain is escaped.
 */
import type { StartResult } from "../engine/types.js";
import type { InvokeOutcome } from "../platform/types.js";
import { asciiJson } from "./errors.js";

/** A longer reason is cut: it is a header, and the function's log has the whole. */
const FALLBACK_CHARACTERS_MAX = 300;

/** `kind=thaw;loader=splice;generation=0;heat=0;us=1840`, then `;wait=…` when it waited and `;fallback="…"` when there was one. */
export function startHeader(start: StartResult): string {
  let text = `kind=${start.kind}`;
  if (start.loader !== undefined) text += `;loader=${start.loader}`;
  if (start.generation !== undefined) text += `;generation=${start.generation}`;
  if (start.heat !== undefined) text += `;heat=${start.heat}`;
  text += `;us=${Math.round(start.us)}`;
  if (start.waitUs > 0) text += `;wait=${Math.round(start.waitUs)}`;
  if (start.fallback !== undefined) text += `;fallback=${asciiJson(start.fallback.slice(0, FALLBACK_CHARACTERS_MAX))}`;
  return text;
}

/** The value of `X-Thaw-Trace`. */
export interface TraceHeader {
  readonly start: StartResult;
  /** Absent when the instance ended with the request. */
  readonly pages?: InvokeOutcome["pages"];
  readonly memory?: InvokeOutcome["memory"];
  readonly handlerMs: number;
  /** Request in the platform's hand to response in its hand. */
  readonly totalMs: number;
  readonly maxMemoryMb: number;
}

/** All phases, page counts and memory of one request, as JSON. */
export function traceHeader(outcome: InvokeOutcome): string {
  const { start, result, pages, memory } = outcome;
  const trace: TraceHeader = {
    start,
    ...(pages === undefined ? {} : { pages }),
    ...(memory === undefined ? {} : { memory }),
    handlerMs: result.handlerMs,
    totalMs: result.totalMs,
    maxMemoryMb: result.maxMemoryMb,
  };
  return asciiJson(trace);
}
