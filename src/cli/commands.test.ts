/** docs/commands.md lists the options of each command, with their defaults, and no others. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { runCli } from "./testing.js";

const OF_ALL = ["--help", "--url", "--json"];
const DOCUMENTED = ["serve", "deploy", "invoke", "logs", "heat", "doctor"];

const sections = new Map(
  readFileSync(join(import.meta.dirname, "../../docs/commands.md"), "utf8")
    .split(/^## /m)
    .map((section) => [section.slice(0, section.indexOf("\n")), section]),
);

/** Long options in `--help`, each with its description in one line. */
async function helpOf(command: readonly string[]): Promise<Map<string, string>> {
  const { out } = await runCli([...command, "--help"]);
  const options = out.slice(out.indexOf("Options:")).split(/\n {2}(?=-)/);
  return new Map(options.slice(1).map((text) => [/--[a-z-]+/.exec(text)?.[0] ?? "", text.replace(/\s+/g, " ")]));
}

/** Long options that the tables of a section name in their first column, each with its row. */
function documentedIn(section: string): Map<string, string> {
  const rows = section.split("\n").filter((line) => line.startsWith("| `"));
  return new Map(
    rows.flatMap((row) => [...(row.split(" | ")[0] ?? "").matchAll(/--[a-z-]+/g)].map(([option]) => [option, row] as const)),
  );
}

describe.each(DOCUMENTED)("docs/commands.md, %s", (command) => {
  let options: Map<string, string>;
  beforeAll(async () => {
    options = await helpOf([command]);
  });

  it("lists its options", () => {
    expect(options.size).toBeGreaterThan(3);
    const own = [...options.keys()].filter((option) => !OF_ALL.includes(option));
    expect([...documentedIn(sections.get(command) ?? "").keys()].sort()).toEqual(own.sort());
  });

  it("says their defaults", () => {
    const rows = documentedIn(sections.get(command) ?? "");
    const wrong = [...options].flatMap(([option, text]) => {
      const said = /\(default: "?([\w./:]+)/.exec(text)?.[1];
      return said === undefined || OF_ALL.includes(option) || rows.get(option)?.includes(said) === true
        ? []
        : [`${option}: ${said}`];
    });
    expect(wrong).toEqual([]);
  });
});

describe("docs/commands.md", () => {
  it("leaves out no command that has options of its own", async () => {
    const { out } = await runCli(["--help"]);
    const commands = [...out.matchAll(/^ {2}([a-z]+)(?: \[options\]| {2,})/gm)].map(([, name = ""]) => name);
    expect(commands).toContain("rm");
    for (const command of commands.filter((name) => !DOCUMENTED.includes(name) && name !== "help")) {
      const own = [...(await helpOf([command])).keys()].filter((option) => !OF_ALL.includes(option));
      expect([command, own]).toEqual([command, []]);
      expect(sections.get("Others")).toContain(`thaw ${command}`);
    }
  });
});
