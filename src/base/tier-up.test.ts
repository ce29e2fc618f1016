import { spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { tierUpEarly } from "./tier-up.js";

function flagsFor(v8Version: string): string[] {
  const flags: string[] = [];
  tierUpEarly(v8Version, (flag) => flags.push(flag));
  return flags;
}

describe("tierUpEarly", () => {
  it("sets flags where V8 has no compiler between its interpreter's and its last", () => {
    expect(flagsFor("11.3.244.8-node.38")).toHaveLength(2);
  });

  it("leaves later versions alone", () => {
    expect(flagsFor("12.4.254.21-node.33")).toEqual([]);
    expect(flagsFor("13.6.233.10-node.28")).toEqual([]);
  });

  it("names flags that this Node knows", () => {
    const set = (flag: string) => `require("node:v8").setFlagsFromString(${JSON.stringify(flag)});`;
    const script = flagsFor(process.versions.v8).map(set).join("\n");
    // V8 writes of a flag that it does not know, and goes on.
    const { stdout, stderr } = spawnSync(process.execPath, ["-e", script], { encoding: "utf8" });
    expect(stdout + stderr).toBe("");
    expect(spawnSync(process.execPath, ["-e", set("--no-such-flag")], { encoding: "utf8" }).stderr).toContain("unrecognized");
  });
});
