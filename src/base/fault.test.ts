import { spawnSync } from "node:child_process";
import { afterEach, describe, expect, it } from "vitest";
import { FAULT_POINTS, faultPoint } from "./fault.js";

const before = process.env["THAW_FAULT"];
afterEach(() => {
  if (before === undefined) delete process.env["THAW_FAULT"];
  else process.env["THAW_FAULT"] = before;
});

describe("a fault point", () => {
  it("does nothing without THAW_FAULT, or when it names another", () => {
    delete process.env["THAW_FAULT"];
    faultPoint("freeze-image-synced");
    process.env["THAW_FAULT"] = "deploy-recorded";
    faultPoint("freeze-image-synced");
  });

  it("kills its own process at once when THAW_FAULT names it", () => {
    // A child that runs the function's own text: killing the test's process would prove little.
    const script = `const faultPoint = ${faultPoint.toString()};
      process.on("exit", () => console.log("an exit handler ran"));
      faultPoint("freeze-image-synced");
      console.log("still here");`;
    const child = spawnSync(process.execPath, ["-e", script], {
      env: { ...process.env, THAW_FAULT: "freeze-image-synced" },
      encoding: "utf8",
    });
    expect(child.signal).toBe("SIGKILL");
    expect(child.stdout).toBe("");
  });

  it("has a name that says operation and moment", () => {
    for (const name of Object.keys(FAULT_POINTS)) expect(name).toMatch(/^(deploy|freeze|thaw|hibernate|wake|remove)(-[a-z]+)+$/);
  });
});
