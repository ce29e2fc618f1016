import { describe, expect, it } from "vitest";
import { Gate } from "./gate.js";

/** Lets everything that is due happen. */
const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe("a gate", () => {
  it("is shut at once when nothing runs, and opens when it is told to", async () => {
    const gate = new Gate();
    const open = await gate.hold(false);
    const seen: string[] = [];
    void gate.shut?.then(() => seen.push("passed"));
    await settle();
    expect(seen).toEqual([]);
    open();
    await settle();
    expect([seen, gate.shut]).toEqual([["passed"], undefined]);
  });

  it("lets the request that runs end first, and is shut before the next can be sent", async () => {
    const gate = new Gate();
    const held = gate.hold(true);
    expect(gate.shut).toBeUndefined();
    gate.idle();
    expect(gate.shut).toBeDefined();
    (await held)();
    await settle();
    expect(gate.shut).toBeUndefined();
  });

  it("that is shut twice opens when both have opened it", async () => {
    const gate = new Gate();
    const [first, second] = [await gate.hold(false), await gate.hold(false)];
    first();
    await settle();
    expect(gate.shut).toBeDefined();
    second();
    await settle();
    expect(gate.shut).toBeUndefined();
  });

  it("does one thing after the other, also after one that failed", async () => {
    const gate = new Gate();
    const order: string[] = [];
    const one = gate.alone(async () => {
      order.push("one begins");
      await settle();
      order.push("one fails");
      throw new Error("no luck");
    });
    const two = gate.alone(async () => order.push("two"));
    expect(gate.working).toBe(true);
    await expect(one).rejects.toThrow("no luck");
    await two;
    await gate.quiet;
    expect([order, gate.working, gate.quiet]).toEqual([["one begins", "one fails", "two"], false, undefined]);
  });
});
