import { describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import type { Told } from "./parts.js";
import { Starting } from "./starting.js";
import type { StartResult } from "./types.js";

const BEGUN: StartResult = { kind: "thaw", us: 0, phases: [], waitUs: 0, prefetchedPages: 0 };
const FAULTS = { minor: 1, major: 0, diskBytes: 0 };

/** One that is under way, and how it is told to be over. */
function underWay() {
  const said: string[] = [];
  const starting = new Starting(BEGUN);
  let tell: Told<void> = () => said.push("never begun");
  starting.with(
    (told) => {
      tell = told;
    },
    (error) => said.push(error.code),
  );
  return { said, starting, over: (error?: ThawError) => tell(error) };
}

describe("a start", () => {
  it("succeeded from the beginning where nothing is waited for", () => {
    const starting = new Starting(BEGUN);
    let called = false;
    starting.whenOver(() => {
      called = true;
    });
    expect([starting.succeeded, called]).toEqual([true, true]);
  });

  it("lets who waits go on when it is over, in order, and at once who comes later", () => {
    const { said, starting, over } = underWay();
    starting.whenOver(() => said.push("first"));
    starting.whenOver(() => said.push("second"));
    expect([starting.succeeded, said]).toEqual([false, []]);
    over();
    starting.whenOver(() => said.push("late"));
    expect([starting.succeeded, said]).toEqual([true, ["first", "second", "late"]]);
  });

  it("that failed is told before those who wait, and stays failed", () => {
    const { said, starting, over } = underWay();
    starting.whenOver(() => said.push(`waited, ${starting.succeeded}`));
    over(new ThawError("THAW_FAILED", { what: "no" }));
    starting.whenOver(() => said.push("late"));
    expect([starting.succeeded, said]).toEqual([false, ["THAW_FAILED", "waited, false", "late"]]);
  });

  it("has its result completed once somebody wants it, once, and what was told since then stays", () => {
    const starting = new Starting(BEGUN);
    let reckoned = 0;
    starting.completedBy(() => ({ us: ++reckoned, coldPages: 1 }));
    expect(reckoned).toBe(0);
    starting.result = { ...starting.result, coldPages: 7 };
    expect([starting.result, starting.result]).toEqual(Array(2).fill({ ...BEGUN, us: 1, coldPages: 7 }));
  });

  it("tells its faults when they are counted, and what came from disk by then", async () => {
    const starting = new Starting(BEGUN);
    starting.countLater();
    starting.countLater();
    starting.cold(Promise.resolve(3));
    const faults = starting.faults();
    starting.counted(FAULTS);
    expect([await faults, starting.result.coldPages]).toEqual([FAULTS, 3]);
  });

  it("has no faults to tell where nobody counts them, and no pages from disk where nobody can say", async () => {
    const starting = new Starting(BEGUN);
    starting.counted(FAULTS);
    starting.cold(Promise.resolve(-1));
    expect([await starting.faults(), starting.result]).toEqual([undefined, BEGUN]);
  });

  it("that is followed later tells its faults later, and hands out what is to be done once", async () => {
    const starting = new Starting(BEGUN);
    const follow = (): void => undefined;
    starting.followedBy(follow);
    expect([starting.takeFollow(), starting.takeFollow()]).toEqual([follow, undefined]);
    const faults = starting.faults();
    starting.counted(FAULTS);
    expect(await faults).toEqual(FAULTS);
  });
});
