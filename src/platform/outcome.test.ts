import { describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { bootFailure } from "./outcome.js";

function answered(details: Record<string, unknown>) {
  const error = new ThawError("INIT_FAILED", { what: 'function "a" failed while it was loaded', why: "exit status 3", details });
  const { result } = bootFailure(error as Parameters<typeof bootFailure>[0], 1500, "r-1");
  return { payload: JSON.parse(result.payload.toString()), logs: result.logs.toString(), platformError: result.platformError };
}

describe("the answer of a function that cannot be loaded", () => {
  it("is the error that its runtime reported, and printed", () => {
    const error = { errorType: "Runtime.ImportModuleError", errorMessage: "no module", trace: ["at"] };
    expect(answered({ error, logs: "looking" })).toEqual({ payload: error, logs: "looking\n", platformError: "INIT_FAILED" });
  });

  it("of which nothing was reported has Lambda's name for what happened; the log says it behind what was printed", () => {
    const errorMessage = 'RequestId: r-1 Error: function "a" failed while it was loaded. exit status 3';
    expect(answered({ code: "INSTANCE_EXITED", type: "Runtime.ExitError", logs: "looking\n" })).toEqual({
      payload: { errorType: "Runtime.ExitError", errorMessage },
      logs: `looking\n${errorMessage}\n`,
      platformError: "INIT_FAILED",
    });
    expect(answered({}).payload.errorType).toBe("INIT_FAILED");
  });
});
