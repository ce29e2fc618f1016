/** What the build leaves beside what the compilers check themselves. */
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { findInterpreters } from "../src/linux/interpreters.js";

const RUNTIME = join(import.meta.dirname, "../src/runtime/python");
/** As Python tells each module that it takes from compiled code, when it is asked to be verbose. */
const COMPILED = /^# code object from '.*\/thaw_runtime\/__pycache__\/(\w+)\.[^/]*\.pyc'$/gm;

it("compiles the Python runtime for each interpreter of this machine, as its sources are now", async () => {
  const modules = readdirSync(join(RUNTIME, "thaw_runtime")).filter((name) => name.endsWith(".py"));
  expect(modules).toContain("serve.py");
  const loadAll =
    "import pkgutil, thaw_runtime as t; [__import__('thaw_runtime.' + m.name) for m in pkgutil.iter_modules(t.__path__)]";
  const env = { PYTHONPATH: RUNTIME, PYTHONDONTWRITEBYTECODE: "1" };
  const pythons = (await findInterpreters()).filter(({ language }) => language === "python");
  for (const { path } of pythons) {
    const { status, stderr } = spawnSync(path, ["-v", "-c", loadAll], { env, encoding: "utf8", timeout: 60_000 });
    expect(status, stderr).toBe(0);
    const compiled = [...stderr.matchAll(COMPILED)].map(([, name]) => `${name}.py`);
    expect(compiled.sort()).toEqual(modules.sort());
  }
});
