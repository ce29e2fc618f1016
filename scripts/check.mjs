// `npm run check`: format, lint, types, C warnings, duplicated code. Every step runs; the exit status says whether
// all passed. `--fix` formats and applies safe fixes; `--analyze` adds gcc's static analyser (slow).
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { findDuplicates } from "./duplicates.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const fix = process.argv.includes("--fix");
const analyze = process.argv.includes("--analyze");

const WARNINGS = [
  ["-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wvla", "-Wformat=2", "-Wundef", "-Wpointer-arith"],
  ["-Wstrict-prototypes", "-Wmissing-prototypes", "-Wold-style-definition", "-Wimplicit-fallthrough"],
].flat();
const FREESTANDING = ["-ffreestanding", "-fno-stack-protector", "-mgeneral-regs-only", "-Wno-missing-prototypes"];

/** The husk's entry point, and what the compiler calls by itself (memcpy, memset), are declared by nobody. */
function compilerArguments(name) {
  const own = name.startsWith("husk") ? FREESTANDING : ["-fPIC"];
  const analyzer = analyze ? ["-fanalyzer"] : [];
  return ["-std=gnu11", "-O2", ...WARNINGS, ...own, ...analyzer, "-Ibuild", "-c", "-o", "/dev/null", name];
}

function run(command, args, cwd = root) {
  const { status, error } = spawnSync(command, args, { cwd, stdio: "inherit" });
  if (error !== undefined) console.error(`check: ${command} could not be started: ${error.message}`);
  return status === 0;
}

const node = (script, args) => run(process.execPath, [join(root, "node_modules", script), ...args]);

function checkC() {
  const native = join(root, "native");
  if (!existsSync(join(native, "build/abi.h"))) {
    console.error("check: native/build/abi.h is missing; it is generated: npm run build");
    return false;
  }
  const sources = readdirSync(native).filter((name) => name.endsWith(".c"));
  return sources.map((name) => run("gcc", compilerArguments(name), native)).every(Boolean);
}

function checkDuplicates() {
  const found = findDuplicates(root, ["src", "test", "native", "scripts"]);
  for (const { lines, places } of found) console.error(`check: the same ${lines} lines stand in ${places.join(" and ")}`);
  return found.length === 0;
}

const steps = {
  "format and lint": () => node("@biomejs/biome/bin/biome", ["check", "--error-on-warnings", ...(fix ? ["--write"] : []), "."]),
  types: () => node("typescript/bin/tsc", ["-p", "tsconfig.check.json"]),
  "C warnings": checkC,
  duplicates: checkDuplicates,
};

const failed = [];
for (const [name, step] of Object.entries(steps)) {
  const start = performance.now();
  const ok = step();
  console.log(`check: ${ok ? "ok    " : "FAILED"} ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`);
  if (!ok) failed.push(name);
}
if (failed.length > 0) {
  console.error(`check: ${failed.join(", ")} failed`);
  process.exitCode = 1;
}
