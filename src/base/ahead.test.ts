import { describe, expect, it } from "vitest";
import { drawnAhead } from "./ahead.js";

describe("what is drawn ahead", () => {
  it("is handed out once each, and drawn anew behind whoever took the last", async () => {
    let draws = 0;
    const next = drawnAhead(() => {
      draws++;
      return [`${draws}a`, `${draws}b`];
    });
    expect(draws).toBe(0);
    expect(new Set([next(), next()])).toEqual(new Set(["1a", "1b"]));
    expect(draws).toBe(1);
    await new Promise((resolve) => setImmediate(resolve));
    expect(draws).toBe(2);
    expect(new Set([next(), next(), next()]).size).toBe(3);
    expect(draws).toBe(3);
  });
});
