/**
 * How a reply says how its instance came to be, for who writes it and who reads it: `X-Thaw-Start`, one line for everybody, and
 * `X-Thaw-Trace`, all figures as JSON for whoever asked. Header values are plain ASCII: what else a reason may contain is escaped.
 */
import { asciiJson } from "../base/ascii-json.js";
import type { StartResult } from "../engine/types.js";
import type { InvokeOutcome } from "./types.js";

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

/** Reads what {@link startHeader} wrote: its parts by name, numbers as numbers. The fallback is last, and quoted as JSON because it may hold anything. */
export function parseStartHeader(header: string): Record<string, string | number> {
  const [, plain = "", fallback] = /^(.*?)(?:;fallback=(".*"))?$/.exec(header) ?? [];
  const start: Record<string, string | number> = {};
  for (const part of plain.split(";")) {
    const [name = "", value = ""] = part.split("=", 2);
    if (name !== "") start[name] = /^\d+$/.test(value) ? Number(value) : value;
  }
  if (fallback !== undefined) start.fallback = String(JSON.parse(fallback));
  return start;
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
