import { describe, expect, it } from "vitest";
import { PRINTED_BYTES_MAX, Printed } from "./printed.js";

describe("what a function printed", () => {
  it("is told in order, once", () => {
    const printed = new Printed();
    for (const part of ["one ", "two ", "x".repeat(5000)]) printed.add(Buffer.from(part));
    expect(printed.includes("two")).toBe(true);
    expect(printed.take().toString()).toBe(`one two ${"x".repeat(5000)}`);
    expect(printed.take()).toHaveLength(0);
    expect(printed.includes("two")).toBe(false);
  });

  it("is cut at 4 MiB, says so, and is whole again for the next request", () => {
    const printed = new Printed();
    for (let mib = 0; mib < 6; mib++) printed.add(Buffer.alloc(1024 * 1024 + 1, "x"));
    const told = printed.take();
    expect(told.subarray(PRINTED_BYTES_MAX - 1).toString()).toBe("x\n[log cut at 4 MiB]\n");
    printed.add(Buffer.from("next"));
    expect(printed.take().toString()).toBe("next");
  });
});
