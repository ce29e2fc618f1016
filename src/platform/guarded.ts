/**
 * Policies that a researcher brings, held to their rules: one that throws, or answers what cannot be, must not end the server, nor take the answer away from
 * a request whose function has run. What it cannot say is decided as the defaults would, and it is told of in the log, once for each of its methods.
 */
import type { Logger } from "../base/log.js";
import { fixedPoints } from "./fixed-points.js";
import type { HeatDecider, HeatPolicy, ImagePoint } from "./heat-policy.js";
import { fixedPolicy, type IdlePolicy, type IdleStep } from "./policy.js";

/** Calls it; what it throws, and what is `wrong` with its answer, is told once, and `otherwise` counts. */
type Ask = <T>(method: string, call: () => T, wrong: (answer: T) => string | undefined, otherwise: () => T) => T;

const right = (): undefined => undefined;

function asking(name: string, log: Logger): Ask {
  const told = new Set<string>();
  return (method, call, wrong, otherwise) => {
    let error: unknown;
    try {
      const answer = call();
      const why = wrong(answer);
      if (why === undefined) return answer;
      error = new Error(why);
    } catch (thrown) {
      error = thrown;
    }
    if (!told.has(method))
      log.error(
        { err: error, policy: name, method },
        "a policy did not answer as it must; it is done without, there and from now on where it fails",
      );
    told.add(method);
    return otherwise();
  };
}

/** A policy of heat that keeps its rules (heat-policy.ts): the hottest image, no further freeze, nothing given up, where its own word is none. */
export function guardedHeat(policy: HeatPolicy, log: Logger): HeatPolicy {
  const ask = asking(policy.name, log);
  return {
    name: policy.name,
    begin(random, saved) {
      // What was saved is refused by throwing: whoever calls begins anew then.
      if (saved !== undefined) return guardedDecider(policy.begin(random, saved), ask);
      return guardedDecider(
        ask(
          "begin",
          () => policy.begin(random),
          right,
          () => fixedPoints().begin(random),
        ),
        ask,
      );
    },
  };
}

function guardedDecider(decider: HeatDecider, ask: Ask): HeatDecider {
  const nothing = (): undefined => undefined;
  return {
    choose: (images) =>
      ask(
        "choose",
        () => decider.choose(images),
        (image) => notAmong(images, image),
        () => hottestOf(images),
      ),
    freezeAt: (images, from) =>
      ask(
        "freezeAt",
        () => decider.freezeAt(images, from),
        (at) =>
          at === undefined || (Number.isSafeInteger(at) && at > from.heat)
            ? undefined
            : `it names ${String(at)} for an instance of heat ${from.heat}`,
        nothing,
      ),
    answered: (from, request, ms) => ask("answered", () => decider.answered(from, request, ms), right, nothing),
    surplus: (images) =>
      ask(
        "surplus",
        () => decider.surplus(images),
        (lost) => notSurplus(images, lost),
        () => [],
      ),
    ...(decider.save === undefined ? {} : { save: () => ask("save", () => decider.save?.(), right, nothing) }),
  };
}

function notAmong(images: readonly ImagePoint[], image: ImagePoint | undefined): string | undefined {
  const known = images.some(({ generation }) => generation === image?.generation);
  return known ? undefined : `it names generation ${String(image?.generation)}, which does not exist`;
}

function notSurplus(images: readonly ImagePoint[], lost: readonly ImagePoint[]): string | undefined {
  if (!Array.isArray(lost)) return `it answers ${String(lost)} and no list`;
  const named = new Set(lost.map((image: ImagePoint | undefined) => image?.generation));
  return images.every(({ generation }) => named.has(generation)) ? "it gives up all images" : undefined;
}

function hottestOf(images: readonly ImagePoint[]): ImagePoint {
  return images.reduce((hot, image) => (image.heat > hot.heat ? image : hot));
}

/** A policy of idle times whose plans are lists of steps: those of the fixed one where they are not. */
export function guardedIdle(policy: IdlePolicy, log: Logger): IdlePolicy {
  const ask = asking(policy.name, log);
  const fixed = fixedPolicy();
  return {
    name: policy.name,
    decide: (idle) =>
      ask(
        "decide",
        () => policy.decide(idle),
        notAPlan,
        () => fixed.decide(idle),
      ),
  };
}

const ACTIONS: readonly IdleStep["action"][] = ["hibernate", "wake", "dispose"];

function notAPlan(plan: readonly IdleStep[]): string | undefined {
  const isPlan = Array.isArray(plan) && plan.every((step) => typeof step === "object" && step !== null);
  if (!isPlan) return `it answers ${String(plan)} and no list of steps`;
  // Not a number would be due neither now nor ever, and so would be all that comes behind it.
  const wrong = plan.find(({ afterMs, action }) => !(typeof afterMs === "number" && afterMs >= 0) || !ACTIONS.includes(action));
  return wrong && `it has a step ${String(wrong.action)} after ${String(wrong.afterMs)} ms`;
}
