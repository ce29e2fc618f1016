/**
 * Turns of the event loop. The server is one thread: what computes for long holds every request of every function meanwhile. Work that grows with the number of
 * mappings, pages or functions is done in pieces of some milliseconds, and others get their turn between two of them; what is small is done at once.
 */
import { setImmediate as immediate } from "node:timers/promises";

/** Resolves once all else that is due had its turn: messages, requests and timers. */
export async function nextTurn(): Promise<void> {
  await immediate();
  // The first comes right behind the callback that asked for it, where that was one of input or output: before any other is looked at.
  await immediate();
}

/** Calls `work` with one piece of the list after the other, each in a turn of its own; with all of it, and at once, where it is no longer than `pieceLength`. */
export async function inTurns<T>(list: readonly T[], pieceLength: number, work: (piece: readonly T[]) => void): Promise<void> {
  if (list.length <= pieceLength) return work(list);
  for (let from = 0; from < list.length; from += pieceLength) {
    await nextTurn();
    work(list.slice(from, from + pieceLength));
  }
}
