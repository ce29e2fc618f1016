/** The documents tell the truth about the code: links, error codes, fault points, promises, dependencies, commands. */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { describe, expect, it } from "vitest";
import { ERROR_CODES } from "../src/base/errors.js";
import { FAULT_POINTS } from "../src/base/fault.js";

const root = join(import.meta.dirname, "..");
const read = (path: string): string => readFileSync(join(root, path), "utf8");
const SKIPPED = new Set(["node_modules", "dist", ".git", "data", "build"]);

function filesBelow(dir: string, pattern: RegExp): string[] {
  return readdirSync(dir, { withFileTypes: true }).flatMap((entry) => {
    if (SKIPPED.has(entry.name)) return [];
    const path = join(dir, entry.name);
    if (entry.isDirectory()) return filesBelow(path, pattern);
    return pattern.test(entry.name) ? [relative(root, path)] : [];
  });
}

const documents = filesBelow(root, /\.md$/);
const withoutCode = (text: string): string => text.replace(/^```[\s\S]*?^```/gm, "").replace(/`[^`\n]*`/g, "");

/** The anchor that a heading gets: lower case, spaces to hyphens, other punctuation dropped. */
const anchorOf = (heading: string): string =>
  heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N}\s_-]/gu, "")
    .trim()
    .replace(/\s/g, "-");

/** Relative links of a document that lead nowhere, as `document → link`. */
function brokenLinks(document: string, text: string): string[] {
  const links = [...withoutCode(text).matchAll(/\]\(([^)\s]+)(?:\s+"[^"]*")?\)/g)].map(([, target = ""]) => target);
  return links.flatMap((link) => {
    if (/^[a-z]+:/.test(link)) return [];
    const [path = "", anchor] = link.split("#");
    const target = path === "" ? document : join(dirname(document), path);
    if (!existsSync(join(root, target))) return [`${document} → ${link}`];
    if (anchor === undefined || statSync(join(root, target)).isDirectory()) return [];
    const anchors = [...read(target).matchAll(/^#+\s+(.*)$/gm)].map(([, heading = ""]) => anchorOf(heading));
    return anchors.includes(anchor) ? [] : [`${document} → ${link}`];
  });
}

describe("links", () => {
  it("lead somewhere, in every document", () => {
    expect(documents.length).toBeGreaterThan(8);
    expect(documents.flatMap((document) => brokenLinks(document, read(document)))).toEqual([]);
  });

  it("that lead nowhere are found", () => {
    const text = "[a](LICENSE) [b](gone.md) [c](docs/errors.md#timeout) [d](docs/errors.md#nothing) [e](https://x.org) `[f](no)`";
    expect(brokenLinks("README.md", text)).toEqual(["README.md → gone.md", "README.md → docs/errors.md#nothing"]);
  });
});

describe("docs/errors.md", () => {
  const sections = read("docs/errors.md").split(/^## /m).slice(1);
  const titles = sections.map((section) => section.slice(0, section.indexOf("\n")).trim());

  it("lists exactly the codes of src/base/errors.ts, in their order", () => {
    expect(titles).toEqual(Object.keys(ERROR_CODES));
  });

  it.each(sections.map((section, index) => [titles[index], section]))(
    "says of %s what it means, why, and what to do",
    (_, section) => {
      for (const part of ["Means", "Why", "Do"]) expect(section).toMatch(new RegExp(`^- \\*\\*${part}:\\*\\* \\S.{10,}`, "m"));
    },
  );
});

describe("fault points", () => {
  const rows = [...read("docs/design/faults.md").matchAll(/^\| `([a-z-]+)` \| (.*?) \| (.*?) \|$/gm)];

  it("are all documented, with the words of the code, and no others", () => {
    const documented = Object.fromEntries(rows.map(([, name, moment]) => [name, moment]));
    expect(documented).toEqual(FAULT_POINTS);
  });

  it("are all passed by the code", () => {
    const code = filesBelow(join(root, "src"), /(?<!\.test)\.ts$/)
      .map(read)
      .join("\n");
    const passed = new Set([...code.matchAll(/\bfaultPoint\("([a-z-]+)"\)/g)].map(([, name]) => name));
    expect([...passed].sort()).toEqual(Object.keys(FAULT_POINTS).sort());
  });
});

/** Whether a test or a group of them has that in its title, or a case of one as its first word; a comment that says the same is none. */
function namesTest(code: string, title: string): boolean {
  return code.split("\n").some((line) => {
    const at = line.indexOf(title);
    return at >= 0 && /(?:\b(?:it|describe|each)\b.*\(|\)\(|^\s*\[?)["'`][^"'`]*$/.test(line.slice(0, at));
  });
}

/** Why a row of the specification does not hold what it says, or undefined. */
function rowObjection(how: string, state: string): string | undefined {
  if (state === "pending") return undefined;
  if (state !== "held") return `the state is "${state}", neither held nor pending`;
  // Titles behind one file are all of that file.
  const tests = [...how.matchAll(/`([^`]+\.test\.ts)`((?:,? "[^"]+")+)/g)].flatMap(([, file = "", titles = ""]) =>
    [...titles.matchAll(/"([^"]+)"/g)].map(([, title = ""]) => [file, title] as const),
  );
  if (tests.length !== (how.match(/"[^"]+"/g) ?? []).length) return "it names a test without its file";
  const benchmarks = [...how.matchAll(/bench `([^`]+)`/g)];
  if (tests.length + benchmarks.length === 0) return "it names no test and no benchmark";
  for (const [file, title] of tests) {
    if (!existsSync(join(root, file))) return `${file} does not exist`;
    if (!namesTest(read(file), title)) return `${file} has no test "${title}"`;
  }
  const lab = filesBelow(join(root, "src/lab"), /(?<!\.test)\.ts$/)
    .map(read)
    .join("\n");
  for (const [, name = ""] of benchmarks) if (!lab.includes(`"${name}"`)) return `there is no benchmark "${name}" in src/lab`;
  return undefined;
}

describe("SPECIFICATION.md", () => {
  const rows = [...read("SPECIFICATION.md").matchAll(/^\| (?!promise|---)(.*) \| (.*) \| (.*) \|$/gm)];

  it("has promises, each held by a test or benchmark that exists, or pending", () => {
    expect(rows.length).toBeGreaterThan(30);
    const objections = rows.map(([, promise, how = "", state = ""]) => [promise, rowObjection(how, state)]);
    expect(objections.filter(([, objection]) => objection !== undefined)).toEqual([]);
  });

  it("promises nothing twice", () => {
    const promises = rows.map(([, promise]) => promise);
    expect(promises.filter((promise, index) => promises.indexOf(promise) !== index)).toEqual([]);
  });

  it("would be caught naming what does not exist", () => {
    expect(rowObjection("test", "held")).toBe("it names no test and no benchmark");
    expect(rowObjection('`test/gone.test.ts` "x"', "held")).toBe("test/gone.test.ts does not exist");
    const absent = ["no such", "title"].join(" ");
    expect(rowObjection(`\`test/docs.test.ts\` "${absent}"`, "held")).toBe(`test/docs.test.ts has no test "${absent}"`);
    expect(rowObjection(`\`test/docs.test.ts\` "links", "${absent}"`, "held")).toBe(`test/docs.test.ts has no test "${absent}"`);
    expect(rowObjection('bench `starts`, "links"', "held")).toBe("it names a test without its file");
    expect(rowObjection("bench `no-such`", "held")).toBe('there is no benchmark "no-such" in src/lab');
    expect(namesTest('  it("does this", () => {', "does this")).toBe(true);
    expect(namesTest("// it does this\nconst text = does(this);", "does this")).toBe(false);
    expect(rowObjection("test", "done")).toContain("neither held nor pending");
  });
});

describe("docs/decisions/dependencies.md", () => {
  it("gives a reason for each dependency of package.json, and for no other", () => {
    const { dependencies, devDependencies } = JSON.parse(read("package.json"));
    const parts = read("docs/decisions/dependencies.md").split(/^## /m);
    const named = (heading: string): string[] => {
      const part = parts.find((text) => text.startsWith(heading)) ?? "";
      return [...part.matchAll(/^- `([^`]+)`: \S.{20,}/gm)].map(([, name = ""]) => name).sort();
    };
    expect(named("At run time")).toEqual(Object.keys(dependencies).sort());
    expect(named("For development")).toEqual(Object.keys(devDependencies).sort());
  });
});

describe("commands", () => {
  it("of README.md and .ci/run are scripts of package.json", () => {
    const scripts = Object.keys(JSON.parse(read("package.json")).scripts);
    const used = [
      ...`${read("README.md")}\n${read("CONTRIBUTING.md")}\n${read(".ci/run")}`.matchAll(/\bnpm (?:run ([a-z]+)|(test)\b)/g),
    ];
    expect(used.length).toBeGreaterThan(4);
    for (const [, script, test] of used) expect(scripts).toContain(script ?? test);
  });

  it("that test the project are the same in README.md and .ci/run", () => {
    for (const command of ["npm ci", "npm test"]) {
      expect(read("README.md")).toContain(command);
      expect(read(".ci/run")).toMatch(new RegExp(`^${command}$`, "m"));
    }
  });
});
