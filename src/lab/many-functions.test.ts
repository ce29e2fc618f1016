import { describe, expect, it } from "vitest";
import { checkMany, functionName, packageOf } from "./many-functions.js";

describe("many functions", () => {
  it("have names in order and code of their own", () => {
    expect([functionName(2), functionName(10)].sort()).toEqual([functionName(2), functionName(10)]);
    expect(Buffer.from(packageOf(2)).equals(Buffer.from(packageOf(4)))).toBe(false);
  });

  it("cannot answer for each other, or for another request", () => {
    const reply = Buffer.from('{"function":4,"seed":9}');
    expect(() => checkMany(4, 9, reply)).not.toThrow();
    expect(() => checkMany(2, 9, reply)).toThrow("function 2, seed 9, answered");
    expect(() => checkMany(4, 8, reply)).toThrow("answered");
  });
});
