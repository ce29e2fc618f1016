/** Waiting for what happens elsewhere: long enough for a machine whose two processors do something else. */
import { setTimeout as sleep } from "node:timers/promises";

const WAIT_MS_MAX = 30_000;

type Found<T> = T | false | undefined;

/** Calls until `read` gives something, and be it true; fails with `what` after `ms`. */
export async function until<T>(what: string, read: () => Found<T> | Promise<Found<T>>, ms = WAIT_MS_MAX): Promise<T> {
  const end = Date.now() + ms;
  for (;;) {
    const value = await read();
    if (value !== undefined && value !== false) return value;
    if (Date.now() > end) throw new Error(`waited ${ms} ms for ${what}`);
    await sleep(20);
  }
}

/** Repeats an expectation until it holds. */
export async function eventually(check: () => void): Promise<void> {
  const end = Date.now() + WAIT_MS_MAX;
  for (;;) {
    try {
      check();
      return;
    } catch (error) {
      if (Date.now() > end) throw error;
    }
    await sleep(20);
  }
}
