/** The stamps of husk programs as named phases. */
import { STAMPS } from "../image/index.js";
import type { Phase } from "./types.js";

const NAMES = Object.entries(STAMPS) as [keyof typeof STAMPS, number][];

/**
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
  const phases: Phase[] = [];
  let last = origin;
  const mark = (name: string, at: number): void => {
    if (at <= 0) return;
    phases.push({ name, us: Math.max(0, at - last) / 1000 });
    last = Math.max(last, at);
  };
  for (const [name, ns] of Object.entries(ahead)) mark(name, last + Number(ns));
  for (const index of stages.keys()) {
    const own = stamps[index] ?? [];
    // The arrival of a stage is the end of the one before.
    mark(stages[index - 1] ?? "send", own[0] ?? 0);
    for (const [name, slot] of NAMES) mark(name, own[slot] ?? 0);
  }
  return { us: (last - origin) / 1000, phases: merge(phases) };
}

/** Phases of the same name become one; empty ones are left out. */
function merge(phases: readonly Phase[]): Phase[] {
  const sums = new Map<string, number>();
  for (const phase of phases) sums.set(phase.name, (sums.get(phase.name) ?? 0) + phase.us);
  return [...sums].map(([name, us]) => ({ name, us: Math.round(us * 10) / 10 })).filter((phase) => phase.us > 0);
}
