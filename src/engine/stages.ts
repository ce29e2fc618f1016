/**
 * Stages of a husk: one program each, run by the husk itself, in the order in which they were sent. What becomes of them is told by callbacks, in the turn
 * in which the keeper's answer is read: the answer of a start comes with the report of its last stage, and each promise in between would cost it some
 * microseconds.
 */
import { ThawError } from "../base/errors.js";
import type { Husk } from "./husk.js";
import type { Keeper } from "./keeper.js";
import { type HuskReport, quietly, type StageRequest } from "./keeper-messages.js";
import { promised, type Told } from "./parts.js";

/** One stage that takes a husk further. */
export interface StageStep {
  readonly name: string;
  readonly request: () => StageRequest;
  /** What each operation of its program does, for messages. */
  readonly labels: () => readonly string[];
  /** Set by a stage that moves the husk's monotonic clock: its distance from ours from then on. */
  readonly clockShiftNs?: number;
  /** Cgroup limits to be in force before the stage runs. */
  readonly before?: (husk: Husk) => void;
}

/** CLOCK_MONOTONIC nanoseconds by slot, 0 = unused, of this process's clock. */
export type Stamps = readonly number[];

/** Runs one stage. */
export function runStage(keeper: Keeper, husk: Husk, step: StageStep): Promise<Stamps> {
  return promised((told) => beginStage(keeper, husk, step, false, told));
}

/**
 * Sends all stages at once. `told` hears of the first failure in their order (those behind it fail because of it), or of the stamps of each once the last has
 * reported.
 */
export function beginStages(keeper: Keeper, husk: Husk, steps: readonly StageStep[], quiet: boolean, told: Told<Stamps[]>): void {
  const all: Stamps[] = [];
  let over = false;
  for (const [index, step] of steps.entries()) {
    const last = index === steps.length - 1;
    beginStage(keeper, husk, step, quiet && last, (error, stamps = []) => {
      if (over) return;
      all.push(stamps);
      over = last || error !== undefined;
      if (over) told(error, all);
    });
  }
}

function beginStage(keeper: Keeper, husk: Husk, step: StageStep, quiet: boolean, told: Told<Stamps>): void {
  step.before?.(husk);
  const shift = husk.clockShiftNs;
  husk.clockShiftNs = step.clockShiftNs ?? shift;
  const request = step.request();
  keeper.beginStage(husk.id, quiet ? quietly(request) : request, (error, report) => {
    if (report === undefined) told(asLost(step.name, error));
    else if (report.status !== 0) told(stageError(step, report));
    else told(undefined, shift === 0 ? report.stamps : report.stamps.map((stamp) => (stamp > 0 ? stamp - shift : stamp)));
  });
}

/**
 * Hands the first request to a process that was resumed ahead of it; `told` when that answers or ends: an error when it ended before it
 * had read the request, as of a stage whose husk is gone, for then nothing of the function ran.
 */
export function deliverFirst(keeper: Keeper, husk: Husk, parts: readonly Buffer[], told: Told<void>): void {
  let delivered = false;
  let signed = false;
  const look = (): void => {
    if (!delivered || !signed) return;
    // Where memory ran out, another one would fare no better.
    const unread = husk.exit?.unread === true && husk.exit.oomKills === 0;
    told(unread ? huskLost("resume") : undefined);
  };
  husk.onSign(() => {
    signed = true;
    look();
  });
  husk.deliver(keeper, parts, (error) => {
    if (error !== undefined) return told(asLost("resume", error));
    delivered = true;
    look();
  });
}

const ERRNO_NAMES: Readonly<Record<number, string>> = {
  1: "EPERM",
  2: "ENOENT",
  5: "EIO",
  9: "EBADF",
  11: "EAGAIN",
  12: "ENOMEM",
  13: "EACCES",
  14: "EFAULT",
  17: "EEXIST",
  22: "EINVAL",
  24: "EMFILE",
  28: "ENOSPC",
  32: "EPIPE",
  71: "EPROTO",
  98: "EADDRINUSE",
  116: "ESTALE",
};
const ESTALE = 116;
const EPIPE = 32;
const ENOENT = 2;
const ENOMEM = 12;

/** The keeper may have known of the husk's end before it could pass the stage on. */
function asLost(stage: string, error: ThawError | undefined): ThawError | undefined {
  const gone = error?.code === "SANDBOX_FAILED" || (error?.code === "KEEPER_FAILED" && error.details.errno === EPIPE);
  return gone ? huskLost(stage, error) : error;
}

/** Nothing is known about the image: whoever started may take another husk. */
function huskLost(stage: string, cause?: unknown): ThawError {
  return new ThawError("SANDBOX_FAILED", {
    what: `a husk ended before its ${stage} stage was done`,
    why: "it was killed, or it crashed",
    details: { stage },
    cause,
  });
}

function stageError(step: StageStep, { status, failedOp }: HuskReport): ThawError {
  const errno = -status;
  if (errno === EPIPE) return huskLost(step.name);
  const label = step.labels()[failedOp] ?? `operation ${failedOp}`;
  const name = ERRNO_NAMES[errno] ?? `errno ${errno}`;
  const details = { stage: step.name, operation: failedOp, label, errno };
  const changed = errno === ESTALE || (errno === ENOENT && label.startsWith("open "));
  if (changed) {
    return new ThawError("IMAGE_MISMATCH", {
      what: `the image does not fit this machine any more: ${label.replace(/^(check that|open) /, "").replace(/ is unchanged$/, "")} is not the file it was made with`,
      why: errno === ESTALE ? "its size, inode or times differ" : "it is gone",
      fix: "the function boots and is frozen anew",
      details,
    });
  }
  return new ThawError(errno === ENOMEM ? "RESOURCE_EXHAUSTED" : "THAW_FAILED", {
    what: `the ${step.name} stage failed at «${label}»`,
    why: `the kernel answered ${name}`,
    details,
  });
}
