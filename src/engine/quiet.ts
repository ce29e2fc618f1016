/**
 * When pools may be refilled. Making a husk takes the processors from the start that took one, and from the answer behind it, so pools wait
 * until no start is under way, and a moment longer; but not for ever, where starts come one upon another.
 */

/** From a start's first word until its answer is out. */
const AFTER_MS = 2;
/** From the first start that is waited for. */
const PATIENCE_MS = 20;
/** Nobody tells the end of a start to whoever waits here: it is asked for so often. */
export const ASK_MS = 3;

/** See above. Times are milliseconds of one monotonic clock. */
export class Quiet {
  #underWay = 0;
  #fromMs = 0;
  #patientUntilMs: number | undefined;

  /** A start begins. */
  began(nowMs: number): void {
    this.#underWay++;
    this.#patientUntilMs ??= nowMs + PATIENCE_MS;
  }

  /** Its process said something, or ended. */
  spoke(nowMs: number): void {
    this.#underWay--;
    this.#fromMs = nowMs + AFTER_MS;
  }

  /** In how many milliseconds to ask again; 0: refill now. */
  waitMs(nowMs: number): number {
    const patience = (this.#patientUntilMs ?? nowMs) - nowMs;
    const rest = this.#underWay > 0 ? ASK_MS : this.#fromMs - nowMs;
    return Math.max(0, Math.ceil(Math.min(patience, rest, ASK_MS)));
  }

  /** Nothing is lacking: starts are waited for anew. */
  filled(nowMs: number): void {
    this.#patientUntilMs = this.#underWay > 0 ? nowMs + PATIENCE_MS : undefined;
  }
}
