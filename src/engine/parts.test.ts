import { describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { Outcome, promised } from "./parts.js";

const FAILED = new ThawError("THAW_FAILED", { what: "no" });

describe("what is told by a call", () => {
  it("is a promise's value, or its error", async () => {
    expect(await promised<number>((told) => told(undefined, 7))).toBe(7);
    await expect(promised<number>((told) => told(FAILED))).rejects.toBe(FAILED);
  });

  it.each([[undefined, 7] as const, [FAILED, undefined] as const])(
    "is kept for who listens later, and heard once by who listened before",
    (error, value) => {
      const heard: unknown[] = [];
      const early = new Outcome<number>();
      early.hear((...told) => heard.push(["early", ...told]));
      early.tell(error, value);
      const late = new Outcome<number>();
      late.tell(error, value);
      late.hear((...told) => heard.push(["late", ...told]));
      expect(heard).toEqual([
        ["early", error, value],
        ["late", error, value],
      ]);
    },
  );
});
