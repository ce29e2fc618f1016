import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatBytes, formatUs, GIB, MIB } from "./units.js";

describe("sizes for people", () => {
  it.each([
    [0, "0 B"],
    [1023, "1023 B"],
    [1024, "1 KiB"],
    [1536, "1.5 KiB"],
    [80 * MIB, "80 MiB"],
    [MIB - 1, "1 MiB"],
    [2.5 * GIB, "2.5 GiB"],
    [-1536, "-1.5 KiB"],
  ])("shows %d bytes as %s", (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text);
  });

  it.each([
    [0, "0 us"],
    [70, "70 us"],
    [940.4, "940 us"],
    [999.7, "1 ms"],
    [1840, "1.84 ms"],
    [130_000, "130 ms"],
    [999_700, "1 s"],
    [2_500_000, "2.5 s"],
    [61_000_000, "61 s"],
  ])("shows %d microseconds as %s", (us, text) => {
    expect(formatUs(us)).toBe(text);
  });

  it("never shows a number with an exponent, whatever the size", () => {
    fc.assert(
      fc.property(fc.double({ min: 0, max: 1e12, noNaN: true }), (us) => {
        expect(formatUs(us)).toMatch(/^[0-9.]+(e-\d+)? (us|ms|s)$/);
        if (us === 0 || us >= 1e-6) expect(formatUs(us)).toMatch(/^[0-9.]+ (us|ms|s)$/);
      }),
    );
  });
});
