/** The stamps of husk programs as named phases. */
import { STAMPS } from "../image/index.js";
import type { Phase } from "./types.js";

const NAMES = Object.keys(STAMPS);
const SLOTS = Object.values(STAMPS);

interface Sum {
  readonly name: string;
  ns: number;
}

/**
 * In plain loops: it is in the way of an answer, where each builtin runs from cold caches.
 *
 * @param began when the start began, CLOCK_MONOTONIC nanoseconds
 * @param ahead what the server did first, nanoseconds each
 * @param stages names of the stages, with the stamps that each reported
 */
export function phasesOf(
  began: bigint,
  ahead: Readonly<Record<string, bigint>>,
  stages: readonly string[],
  stamps: readonly (readonly number[])[],
): { us: number; phases: Phase[] } {
  const origin = Number(began);
  const sums: Sum[] = [];
  let last = origin;
  for (const name in ahead) last = mark(sums, name, last, last + Number(ahead[name]));
  for (let index = 0; index < stages.length; index++) {
    const own = stamps[index] ?? [];
    // The arrival of a stage is the end of the one before.
    last = mark(sums, stages[index - 1] ?? "send", last, own[0] ?? 0);
    for (let at = 0; at < NAMES.length; at++) last = mark(sums, NAMES[at] as string, last, own[SLOTS[at] as number] ?? 0);
  }
  const phases: Phase[] = [];
  for (const { name, ns } of sums) {
    const us = Math.round(ns / 100) / 10;
    if (us > 0) phases.push({ name, us });
  }
  return { us: (last - origin) / 1000, phases };
}

/** Phases of the same name become one. Returns what is last then. */
function mark(sums: Sum[], name: string, last: number, at: number): number {
  if (at <= last) return last;
  let sum: Sum | undefined;
  for (const one of sums) if (one.name === name) sum = one;
  if (sum === undefined) sums.push({ name, ns: at - last });
  else sum.ns += at - last;
  return at;
}
