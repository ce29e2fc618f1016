/**
 * What policies have learned of each function outlives the server: idle times (idle-times.ts) and latencies by image (heat-policy.ts).
 * Written once a minute, of functions of which there is news, and when the server stops; a crash costs what the last minute taught. Nothing
 * depends on it but decisions: what cannot be read or written is told in the server's log, and learned anew.
 */

import { errorText } from "../base/errors.js";
import type { Logger } from "../base/log.js";
import { nextTurn } from "../base/turns.js";
import type { LearnedRow, Store, StoredLearned } from "./store.js";
import type { Version } from "./version.js";

const SAVE_MS = 60_000;
/** Rows of one transaction, in which nobody is answered. */
const ROWS_MAX = 200;

/** What a version knew when it was last written. */
interface Written {
  readonly idleTimes: number;
  readonly answers: number;
}

export interface LearnedOptions {
  readonly store: Store;
  readonly versions: () => Iterable<Version>;
  readonly log: Logger;
}

/** See above. */
export class Learned {
  readonly #options: LearnedOptions;
  readonly #written = new WeakMap<Version, Written>();
  readonly #timer: NodeJS.Timeout;
  #saving: Promise<void> | undefined;
  #failed = false;

  constructor(options: LearnedOptions) {
    this.#options = options;
    for (const version of options.versions()) this.#written.set(version, newsOf(version));
    this.#timer = setInterval(() => void this.save(), SAVE_MS).unref();
  }

  /** Writes what is new. Never rejects: a failure is logged once, and the next minute tries again. */
  save(): Promise<void> {
    this.#saving ??= this.#save().finally(() => {
      this.#saving = undefined;
    });
    return this.#saving;
  }

  /** Writes all that is new. Idempotent. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#saving;
    await this.save();
  }

  async #save(): Promise<void> {
    const { store, versions, log } = this.#options;
    let rows: LearnedRow[] = [];
    let written: [Version, Written][] = [];
    const write = (): void => {
      if (rows.length > 0) store.putLearned(rows);
      for (const [version, news] of written) this.#written.set(version, news);
      [rows, written] = [[], []];
    };
    try {
      for (const version of versions()) {
        const news = newsOf(version);
        const before = this.#written.get(version) ?? NOTHING;
        if (news.idleTimes === before.idleTimes && news.answers === before.answers) continue;
        rows.push(...rowsOf(version, news, before));
        written.push([version, news]);
        if (rows.length >= ROWS_MAX) write();
        await nextTurn();
      }
      write();
      this.#failed = false;
    } catch (error) {
      if (!this.#failed)
        log.warn({ err: error }, "what was learned of functions could not be written; it is tried again every minute");
      this.#failed = true;
    }
  }
}

const NOTHING: Written = { idleTimes: 0, answers: 0 };

function newsOf({ idleTimes, generations }: Version): Written {
  return { idleTimes: idleTimes.count, answers: generations.answers };
}

function rowsOf(version: Version, news: Written, before: Written): LearnedRow[] {
  const rows: LearnedRow[] = [];
  const add = (what: LearnedRow["what"], state: unknown): void => {
    rows.push({ version: version.stored, what, state: JSON.stringify(state) });
  };
  if (news.idleTimes !== before.idleTimes) add("idle-times", version.idleTimes.save());
  const heat = news.answers === before.answers ? undefined : version.generations.save();
  if (heat !== undefined) add("heat", heat);
  return rows;
}

/** Gives a version that was stored what a former server had learned of it. What cannot be used is logged, and learned anew. */
export function recall(version: Version, learned: readonly StoredLearned[], log: Logger): void {
  for (const { what, state } of learned) {
    try {
      const value: unknown = JSON.parse(state);
      if (what === "heat") version.generations.recall(value);
      else version.idleTimes.recall(value);
    } catch (error) {
      log.warn(
        { function: version.name, what, why: errorText(error) },
        "what was learned of a function cannot be used, and is learned anew",
      );
    }
  }
}
