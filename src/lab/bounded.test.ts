import { describe, expect, it } from "vitest";
import { sleep } from "../base/clock.js";
import { Cleanup, Deadline, within } from "./bounded.js";

describe("within", () => {
  it("gives what came in time and names what did not", async () => {
    expect(await within(Promise.resolve(7), 1_000, "it")).toBe(7);
    await expect(within(sleep(5_000), 10, "the wait")).rejects.toThrow("the wait did not finish within 10 ms");
  });
});

describe("Deadline", () => {
  it("passes", async () => {
    expect(new Deadline(60_000).passed).toBe(false);
    const deadline = new Deadline(20);
    await sleep(30);
    expect(deadline).toMatchObject({ passed: true, remainingMs: 0 });
  });
});

describe("Cleanup", () => {
  it("undoes newest first, each once, goes on after a failure, and says what failed", async () => {
    const done: string[] = [];
    const cleanup = new Cleanup();
    cleanup.add("first", () => void done.push("first"));
    cleanup.add("second", () => {
      throw new Error("stuck");
    });
    const takeBack = cleanup.add("third", () => void done.push("third"));
    cleanup.add("fourth", async () => void done.push("fourth"));
    takeBack();
    const [problems, again] = await Promise.all([cleanup.run(), cleanup.run()]);
    expect(done).toEqual(["fourth", "first"]);
    expect(problems).toEqual(["second: stuck"]);
    expect(again).toBe(problems);
  });
});
