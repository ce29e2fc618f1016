/**
 * Interpreters are asked once for the whole run. Version managers put scripts on the PATH that start interpreters; to ask all of them takes a second
 * of both processors (pyenv with eight versions), and every engine and server of the tests does so when it opens. The set-up puts the directories of what
 * they lead to in their place: the same interpreters, in the same order. What is a script and what is not has tests of its own
 * (src/linux/interpreters.test.ts).
 */
import { closeSync, openSync, readdirSync, readSync, realpathSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { findInterpreters } from "../../src/linux/interpreters.js";

const INTERPRETER = /^(node(js)?|python3(\.\d+)?)$/;

/** Whether `dir` has interpreters, and they and all else in it are scripts: a version manager's. */
function isShims(dir: string): boolean {
  let names: string[];
  try {
    names = readdirSync(dir);
  } catch {
    return false;
  }
  return names.some((name) => INTERPRETER.test(name)) && names.every((name) => isScript(join(dir, name)));
}

function isScript(path: string): boolean {
  try {
    const file = openSync(path, "r");
    try {
      const head = Buffer.alloc(2);
      readSync(file, head, 0, 2, 0);
      return head.toString("latin1") === "#!";
    } finally {
      closeSync(file);
    }
  } catch {
    return false;
  }
}

/** The runner calls this before the first test. */
export default async function setup(): Promise<void> {
  const before = (process.env["PATH"] ?? "").split(delimiter);
  const own = realpathSync(process.execPath);
  const after = await Promise.all(
    before.map(async (dir) => {
      if (!isShims(dir)) return [dir];
      const found = await findInterpreters(dir);
      return found.filter(({ path }) => path !== own).map(({ path }) => dirname(path));
    }),
  );
  process.env["PATH"] = [...new Set(after.flat())].join(delimiter);
}
