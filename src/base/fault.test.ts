import { spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { FAULT_POINTS, faultPoint } from "./fault.js";

describe("a fault point", () => {
  // A child that runs the function's own text: killing the test's process would prove little.
  const run = (env: { THAW_FAULT?: string }) => {
    const { THAW_FAULT: _, ...others } = process.env;
    const script = `const given = process.env.THAW_FAULT !== undefined;
      const faultPoint = ${faultPoint.toString()};
      process.on("exit", () => console.log("an exit handler ran"));
      faultPoint("freeze-image-synced");
      console.log("still here");`;
    const { signal, stdout } = spawnSync(process.execPath, ["-e", script], {
      env: { ...others, ...env },
      encoding: "utf8",
    });
    return { signal, stdout };
  };

  it("does nothing without THAW_FAULT, or when it names another", () => {
    const goesOn = { signal: null, stdout: "still here\nan exit handler ran\n" };
    expect(run({})).toEqual(goesOn);
    expect(run({ THAW_FAULT: "deploy-recorded" })).toEqual(goesOn);
  });

  it("kills its own process at once when THAW_FAULT names it", () => {
    expect(run({ THAW_FAULT: "freeze-image-synced" })).toEqual({ signal: "SIGKILL", stdout: "" });
  });

  it("has a name that says operation and moment", () => {
    for (const name of Object.keys(FAULT_POINTS)) expect(name).toMatch(/^(deploy|freeze|thaw|hibernate|wake|remove)(-[a-z]+)+$/);
  });
});
