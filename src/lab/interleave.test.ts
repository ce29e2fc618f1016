import { describe, expect, it } from "vitest";
import { sleep } from "../base/clock.js";
import { Deadline } from "./bounded.js";
import { interleave } from "./interleave.js";

const minute = () => new Deadline(60_000);

describe("interleave", () => {
  it("runs the arms in turn, prepares off the clock, and discards only the warm-up's samples", async () => {
    const order: string[] = [];
    const arm = (name: string) => ({
      name,
      prepare: async (round: number) => void order.push(`prepare ${name}${round}`),
      run: async (round: number) => {
        order.push(`${name}${round}`);
        return round;
      },
    });
    const [a, b] = await interleave([arm("A"), arm("B")], { rounds: 2, deadline: minute() });
    expect(order.filter((step) => !step.startsWith("prepare"))).toEqual(["A-1", "B-1", "A0", "B0", "A1", "B1"]);
    expect(order.slice(0, 2)).toEqual(["prepare A-1", "A-1"]);
    expect(a).toEqual({ name: "A", samples: [0, 1], rounds: [0, 1], failures: [] });
    expect(b?.samples).toEqual([0, 1]);
  });

  it("draws the order of each round anew when asked to, and runs an arm only in the rounds that are its own", async () => {
    const order: string[] = [];
    const arm = (name: string, every?: number) => ({
      name,
      run: async (round: number) => void order.push(`${name}${round}`),
      ...(every === undefined ? {} : { every }),
    });
    const draws = [0.9, 0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0];
    const shuffle = () => draws.shift() ?? 0;
    const results = await interleave([arm("A"), arm("B"), arm("C", 2)], {
      rounds: 3,
      deadline: minute(),
      warmupRounds: 0,
      shuffle,
    });
    expect(order).toEqual(["C0", "A0", "B0", "A1", "B1", "A2", "B2", "C2"]);
    expect(results.map(({ name, rounds }) => [name, rounds])).toEqual([
      ["A", [0, 1, 2]],
      ["B", [0, 1, 2]],
      ["C", [0, 2]],
    ]);
  });

  it("keeps every failed run with its round and reason, also those of the warm-up and of prepare", async () => {
    const flaky = {
      name: "flaky",
      run: async (round: number) => {
        if (round === -1 || round === 1) throw new Error(`round ${round} broke`);
        return round;
      },
    };
    const unprepared = { name: "unprepared", prepare: () => Promise.reject(new Error("pool never filled")), run: async () => 0 };
    const [first, second] = await interleave([flaky, unprepared], { rounds: 3, deadline: minute() });
    expect(first?.samples).toEqual([0, 2]);
    expect(first?.rounds).toEqual([0, 2]);
    expect(first?.failures).toEqual([
      { round: -1, error: "round -1 broke" },
      { round: 1, error: "round 1 broke" },
    ]);
    expect(second?.samples).toEqual([]);
    expect(second?.failures[0]?.error).toBe("pool never filled");
  });

  it("gives up an arm that only fails, and goes on with the others", async () => {
    let tries = 0;
    const broken = {
      name: "broken",
      run: () => {
        tries += 1;
        return Promise.reject(new Error("no"));
      },
    };
    const fine = { name: "fine", run: async () => 1 };
    const [bad, good] = await interleave<number>([broken, fine], { rounds: 20, deadline: minute() });
    expect(tries).toBe(3);
    expect(bad?.failures).toHaveLength(3);
    expect(bad?.cutShort).toBe("given up in round 1 after 3 failures in a row");
    expect(good?.samples).toHaveLength(20);
  });

  it("turns a run that hangs into a failure", async () => {
    const [result] = await interleave([{ name: "stuck", run: () => new Promise<number>(() => {}) }], {
      rounds: 1,
      deadline: minute(),
      runMsMax: 20,
      warmupRounds: 0,
    });
    expect(result?.failures).toEqual([{ round: 0, error: "stuck did not finish within 20 ms" }]);
  });

  it("stops at the deadline and says so", async () => {
    const [result] = await interleave([{ name: "slow", run: () => sleep(30).then(() => 1) }], {
      rounds: 1_000,
      deadline: new Deadline(120),
    });
    expect(result?.samples.length).toBeLessThan(10);
    expect(result?.cutShort).toMatch(/were over at round -?\d/);
  });
});
