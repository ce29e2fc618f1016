/** The rooms of src/ and who may import whom, held. The table is the drawing; whoever adds a room adds it here. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join, relative, resolve, sep } from "node:path";
import { describe, expect, it } from "vitest";

/** Each room and the rooms below it. cli, gateway and lab stand side by side; the command that serves is the one bridge. */
const ROOMS: Readonly<Record<string, readonly string[]>> = {
  base: [],
  image: ["base"],
  linux: ["base"],
  runtime: ["base"],
  engine: ["image", "linux", "runtime", "base"],
  platform: ["engine", "image", "linux", "runtime", "base"],
  gateway: ["platform", "engine", "image", "linux", "runtime", "base"],
  lab: ["platform", "engine", "image", "linux", "runtime", "base"],
  cli: ["gateway", "platform", "engine", "image", "linux", "runtime", "base"],
};

/**
 * Tables without behaviour that a neighbour may read: `image` compiles programs out of system calls and shared layouts, but touches
 * no process.
 */
const SHARED_TABLES: Readonly<Record<string, readonly string[]>> = {
  image: ["linux/abi.ts", "linux/syscalls.ts", "linux/seccomp.ts", "linux/userfaultfd.ts"],
};

const FILE_LINES_MAX = 500;
const FILE_LINES_NOTED = 250;

const root = join(import.meta.dirname, "..");
const src = join(root, "src");

function filesBelow(dir: string, pattern: RegExp): string[] {
  return readdirSync(dir, { withFileTypes: true }).flatMap((entry) => {
    const path = join(dir, entry.name);
    if (entry.isDirectory()) return entry.name === "build" ? [] : filesBelow(path, pattern);
    return pattern.test(entry.name) ? [path] : [];
  });
}

/** A file inside src/, as `room/…/name.ts`. */
type SourceName = string;

interface Import {
  readonly from: SourceName;
  readonly to: SourceName;
}

const IMPORT = /(?:\bfrom\s*|\bimport\s*\(?\s*)["'](\.{1,2}\/[^"']+)["']/g;

/** The relative imports in `text`, the source of `from`. Static, re-exporting, type-only and dynamic ones alike. */
function importsOf(from: SourceName, text: string): Import[] {
  const code = text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
  return [...code.matchAll(IMPORT)].map(([, target = ""]) => {
    const path = relative(src, resolve(src, dirname(from), target))
      .split(sep)
      .join("/");
    return { from, to: path.replace(/\.js$/, ".ts") };
  });
}

const roomOf = (name: SourceName): string => name.split("/")[0] ?? "";

/** Why an import is not allowed, naming both files; undefined when it is. */
function objection({ from, to }: Import): string | undefined {
  const [room, target] = [roomOf(from), roomOf(to)];
  if (room === target || ROOMS[room]?.includes(target) === true) return undefined;
  if (SHARED_TABLES[room]?.includes(to) === true) return undefined;
  return `src/${from} imports src/${to}: ${room} may import only ${ROOMS[room]?.join(", ") || "nothing"}`;
}

/** Cycles of files that touch more than one room, each as a path that ends where it began. */
function cyclesAcrossRooms(imports: readonly Import[]): string[] {
  const targets = new Map<SourceName, SourceName[]>();
  for (const { from, to } of imports) targets.set(from, [...(targets.get(from) ?? []), to]);
  const done = new Set<SourceName>();
  const found: string[] = [];
  const visit = (name: SourceName, path: readonly SourceName[]): void => {
    const at = path.indexOf(name);
    if (at !== -1) {
      const cycle = [...path.slice(at), name];
      if (new Set(cycle.map(roomOf)).size > 1) found.push(cycle.join(" → "));
      return;
    }
    if (done.has(name)) return;
    for (const to of targets.get(name) ?? []) visit(to, [...path, name]);
    done.add(name);
  };
  for (const name of targets.keys()) visit(name, []);
  return found;
}

const sources = filesBelow(src, /\.ts$/).map((path) => relative(src, path).split(sep).join("/"));
const imports = sources.flatMap((name) => importsOf(name, readFileSync(join(src, name), "utf8")));
const production = imports.filter(({ from }) => !from.endsWith(".test.ts"));

describe("rooms", () => {
  it("are those of the table, no more and no fewer", () => {
    const present = readdirSync(src).filter((name) => statSync(join(src, name)).isDirectory());
    expect(present.sort()).toEqual(Object.keys(ROOMS).sort());
    expect(sources.filter((name) => !name.includes("/"))).toEqual([]);
  });

  it("import only what is below them", () => {
    expect(imports.length).toBeGreaterThan(50);
    expect(production.map(objection).filter(Boolean)).toEqual([]);
  });

  it("keep to that in their tests too", () => {
    const inTests = imports.filter(({ from }) => from.endsWith(".test.ts"));
    expect(inTests.map(objection).filter(Boolean)).toEqual([]);
  });

  it("import only files that exist", () => {
    const missing = imports.filter(({ to }) => /\.ts$/.test(to) && !sources.includes(to));
    expect(missing).toEqual([]);
  });

  it("are in no cycle with each other", () => {
    expect(cyclesAcrossRooms(imports)).toEqual([]);
  });

  it("have an order: the table itself has no cycle", () => {
    for (const [room, below] of Object.entries(ROOMS))
      for (const lower of below) expect(ROOMS[lower], `${room} and ${lower}`).not.toContain(room);
  });
});

describe("the checks themselves", () => {
  it("see static, type-only, re-exporting, side-effect and dynamic imports, and no comments", () => {
    const text = `
      import a from "../base/a.js";
      import type { B } from "../base/b.js";
      export { c } from "../base/c.js";
      import "../base/d.js";
      import { e,
        e2 } from '../base/e.js';
      const f = await import("../base/f.js");
      // import g from "../base/g.js";
      /* import h from "../base/h.js"; */
      import i from "node:fs";`;
    expect(importsOf("engine/x.ts", text).map(({ to }) => to)).toEqual(
      ["a", "b", "c", "d", "e", "f"].map((name) => `base/${name}.ts`),
    );
  });

  it("object to an import of a higher room or a neighbour, naming both files", () => {
    expect(objection({ from: "engine/a.ts", to: "platform/b.ts" })).toBe(
      "src/engine/a.ts imports src/platform/b.ts: engine may import only image, linux, runtime, base",
    );
    expect(objection({ from: "gateway/a.ts", to: "cli/b.ts" })).toContain("src/gateway/a.ts imports src/cli/b.ts");
    expect(objection({ from: "image/a.ts", to: "linux/abi.ts" })).toBeUndefined();
    expect(objection({ from: "image/a.ts", to: "linux/cgroups.ts" })).toContain("image may import only base");
    expect(objection({ from: "cellar/a.ts", to: "base/b.ts" })).toContain("cellar may import only nothing");
  });

  it("find a cycle that crosses rooms, and ignore one inside a room", () => {
    const across = [
      { from: "engine/a.ts", to: "image/b.ts" },
      { from: "image/b.ts", to: "base/c.ts" },
      { from: "base/c.ts", to: "engine/a.ts" },
    ];
    expect(cyclesAcrossRooms(across)).toEqual(["engine/a.ts → image/b.ts → base/c.ts → engine/a.ts"]);
    expect(
      cyclesAcrossRooms([
        { from: "base/a.ts", to: "base/b.ts" },
        { from: "base/b.ts", to: "base/a.ts" },
      ]),
    ).toEqual([]);
  });
});

describe("tests", () => {
  it("that put something else in a module's place have a process of their own: in one that has the module already nothing would be mocked", () => {
    const mocking = [...filesBelow(src, /\.test\.ts$/), ...filesBelow(join(root, "test"), /\.test\.ts$/)].filter((path) =>
      /\bvi\.(?:do)?[mM]ock\(/.test(readFileSync(path, "utf8")),
    );
    expect(mocking.length).toBeGreaterThan(0);
    expect(mocking.map((path) => relative(root, path)).filter((name) => !name.endsWith(".mocked.test.ts"))).toEqual([]);
  });
});

describe("files", () => {
  const sizes = [...filesBelow(src, /(?<!\.test)\.(ts|cjs|mjs|py)$/), ...filesBelow(join(root, "native"), /\.[ch]$/)]
    .map((path) => ({ name: relative(root, path), lines: readFileSync(path, "utf8").split("\n").length - 1 }))
    .sort((a, b) => b.lines - a.lines);

  it(`hold one idea: none in src/ has more than ${FILE_LINES_MAX} lines (those above ${FILE_LINES_NOTED} are noted)`, () => {
    const noted = sizes.filter(({ lines }) => lines > FILE_LINES_NOTED);
    if (noted.length > 0) console.log(`long files: ${noted.map(({ name, lines }) => `${name} ${lines}`).join(", ")}`);
    expect(sizes.filter(({ name, lines }) => name.startsWith("src/") && lines > FILE_LINES_MAX)).toEqual([]);
  });
});
