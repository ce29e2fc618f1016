import { readFile } from "node:fs";
import { describe, expect, it } from "vitest";
import { inTurns, nextTurn } from "./turns.js";

/** Goes on in a callback of input, when a timer has become due meanwhile. */
function withTimerDue(work: (fired: () => boolean) => Promise<void>): Promise<void> {
  return new Promise((resolve, reject) => {
    readFile("/proc/self/stat", () => {
      let fired = false;
      setTimeout(() => {
        fired = true;
      }, 1);
      const until = performance.now() + 5;
      while (performance.now() < until);
      work(() => fired).then(resolve, reject);
    });
  });
}

describe("a turn of the event loop", () => {
  it("lets everything else that is due come first, also when it is asked for by an answer from the disk", async () => {
    await withTimerDue(async (fired) => {
      await nextTurn();
      expect(fired()).toBe(true);
    });
  });
});

describe("a list that is worked on in turns", () => {
  it("is handed over whole and in order, in pieces that others come between", async () => {
    const list = Array.from({ length: 25 }, (_, index) => index);
    const pieces: (readonly number[])[] = [];
    await withTimerDue((fired) =>
      inTurns(list, 10, (piece) => {
        pieces.push(piece);
        expect(fired()).toBe(true);
      }),
    );
    expect(pieces.map((piece) => piece.length)).toEqual([10, 10, 5]);
    expect(pieces.flat()).toEqual(list);
  });

  it("is handed over at once where it is short", () => {
    let seen: readonly number[] = [];
    void inTurns([1, 2, 3], 3, (piece) => {
      seen = piece;
    });
    expect(seen).toEqual([1, 2, 3]);
  });

  it("ends with the first error of the work on it", async () => {
    let pieces = 0;
    const fails = inTurns([1, 2, 3, 4], 1, () => {
      pieces++;
      throw new Error("no");
    });
    await expect(fails).rejects.toThrow("no");
    expect(pieces).toBe(1);
  });
});
