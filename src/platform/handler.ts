/**
 * Guesses runtime and handler of a package by looking at its files. Nothing is executed; what cannot be recognised is
 * an error that says what to pass instead.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { ThawError } from "../base/errors.js";

type Family = "nodejs" | "python";

const NODE_NAMES = ["index", "app", "handler", "main", "lambda", "function"];
const NODE_EXTENSIONS = ["mjs", "js", "cjs"];
const PYTHON_NAMES = ["lambda_function", "main", "app", "handler", "index", "function"];
/** Only the beginning of a large bundle and its end are searched; exports stand there. */
const SEARCH_BYTES = 512 * 1024;

/** What was asked for, or found. */
export interface Entry {
  readonly runtime: string;
  readonly handler: string;
}

/** Completes what the user gave. CODE_INVALID, or RUNTIME_MISSING, when it cannot be done. */
export async function findEntry(
  dir: string,
  files: readonly string[],
  given: { readonly runtime?: string | undefined; readonly handler?: string | undefined },
  runtimes: readonly string[],
): Promise<Entry> {
  if (given.runtime !== undefined && !runtimes.includes(given.runtime)) throw missingRuntime(given.runtime, runtimes);
  if (given.handler !== undefined) {
    return { handler: given.handler, runtime: given.runtime ?? pick(familyOf(given.handler, files), runtimes) };
  }
  const family = given.runtime === undefined ? undefined : given.runtime.startsWith("python") ? "python" : "nodejs";
  const candidates = await candidateFiles(dir, files, family);
  for (const file of candidates) {
    const text = await searchable(join(dir, file));
    const name = file.endsWith(".py") ? pythonExport(text) : nodeExport(text);
    if (name === undefined) continue;
    const found: Family = file.endsWith(".py") ? "python" : "nodejs";
    return { runtime: given.runtime ?? pick(found, runtimes), handler: `${file.replace(/\.[^.]+$/, "")}.${name}` };
  }
  const folder = candidates.length === 0 ? onlyFolder(files) : undefined;
  if (folder !== undefined) {
    throw new ThawError("CODE_INVALID", {
      what: "The code package has no handler that could be guessed",
      why: `all of it lies in its folder ${folder}`,
      fix: `Deploy what is in that folder, without the folder itself; or name it with --handler ${folder}/FILE.EXPORT`,
    });
  }
  const source = candidates.length === 0 && family !== "python" ? files.find(isTypeScript) : undefined;
  if (source !== undefined) {
    throw new ThawError("CODE_INVALID", {
      what: "The code package has no handler that could be guessed",
      why: `it has TypeScript (${source}) and none of the usual files of JavaScript (index.js, …), which is what runs`,
      fix: "Compile or bundle it, such as with tsc or esbuild, and deploy the folder that this writes",
    });
  }
  throw new ThawError("CODE_INVALID", {
    what: "The code package has no handler that could be guessed",
    why:
      candidates.length === 0
        ? `it has none of the usual files${family === undefined ? "" : ` of ${given.runtime}`} (${USUAL[family ?? "any"]}, …)`
        : `${candidates.join(", ")} export${candidates.length === 1 ? "s" : ""} no function named handler, as far as can be seen without running ${candidates.length === 1 ? "it" : "them"}`,
    fix: "Name it with --handler FILE.EXPORT, and the runtime with --runtime",
  });
}

/** The likeliest names, for who has none of them. */
const USUAL = {
  nodejs: "index.js, index.mjs, app.js, handler.js",
  python: "lambda_function.py, main.py, app.py",
  any: "index.js, index.mjs, app.js, handler.js, lambda_function.py, main.py, app.py",
} as const;

/** Of the function's own, and more than declarations. */
function isTypeScript(path: string): boolean {
  return /\.[cm]?ts$/.test(path) && !/\.d\.[cm]?ts$/.test(path) && !path.split("/").includes("node_modules");
}

/** The folder that was packed instead of what is in it. What a Mac adds beside it counts for nothing. */
function onlyFolder(files: readonly string[]): string | undefined {
  const own = files.filter((path) => !path.startsWith("__MACOSX/") && path !== ".DS_Store");
  const [first = ""] = own;
  const folder = first.slice(0, Math.max(0, first.indexOf("/")));
  return folder !== "" && own.every((path) => path.startsWith(`${folder}/`)) ? folder : undefined;
}

async function candidateFiles(dir: string, files: readonly string[], family: Family | undefined): Promise<string[]> {
  const present = new Set(files);
  const found: string[] = [];
  if (family !== "python") {
    const main = present.has("package.json") ? await packageMain(join(dir, "package.json")) : undefined;
    if (main !== undefined) found.push(...[main, `${main}.js`, `${main}/index.js`].filter((path) => /\.[mc]?js$/.test(path)));
    found.push(...NODE_NAMES.flatMap((name) => NODE_EXTENSIONS.map((extension) => `${name}.${extension}`)));
  }
  if (family !== "nodejs") found.push(...PYTHON_NAMES.map((name) => `${name}.py`));
  return [...new Set(found)].filter((path) => present.has(path));
}

async function packageMain(path: string): Promise<string | undefined> {
  let content: unknown;
  try {
    content = JSON.parse(await readFile(path, "utf8"));
  } catch (error) {
    throw new ThawError("CODE_INVALID", {
      what: "The code package's package.json cannot be read",
      why: error instanceof Error ? error.message : String(error),
      fix: "Correct it; Node would refuse it too",
      cause: error,
    });
  }
  const main = (content as { main?: unknown } | null)?.main;
  return typeof main === "string" ? main.replace(/^\.\//, "") : undefined;
}

async function searchable(path: string): Promise<string> {
  const text = await readFile(path, "utf8");
  return text.length <= 2 * SEARCH_BYTES ? text : text.slice(0, SEARCH_BYTES) + text.slice(-SEARCH_BYTES);
}

function nodeExport(text: string): string | undefined {
  const patterns = [
    /\bexport\s+(?:async\s+)?(?:const|let|var|function\*?)\s+handler\b/,
    /\bexport\s*\{[^}]*\bhandler\b[^}]*\}/,
    /\bexports\s*\.\s*handler\s*=/,
    /\bexports\s*\[\s*["']handler["']\s*\]\s*=/,
    /\bmodule\s*\.\s*exports\s*=\s*\{[^}]*\bhandler\b/,
    // How bundlers define CommonJS exports: __export(x, { handler: () => handler }).
    /\b__export\([^)]*\{[^}]*\bhandler\s*:/,
  ];
  return patterns.some((pattern) => pattern.test(text)) ? "handler" : undefined;
}

function pythonExport(text: string): string | undefined {
  const definition = /^(?:(?:async\s+)?def\s+(lambda_handler|handler)\s*\(|(lambda_handler|handler)\s*(?::[^=\n]+)?=)/m.exec(
    text,
  );
  return definition?.[1] ?? definition?.[2];
}

/** Which language a handler string belongs to, by the file that it names. */
function familyOf(handler: string, files: readonly string[]): Family {
  const present = new Set(files);
  const parts = handler.replaceAll("\\", "/").split(".");
  for (let end = parts.length - 1; end >= 1; end--) {
    const stem = parts.slice(0, end).join(".");
    if (NODE_EXTENSIONS.some((extension) => present.has(`${stem}.${extension}`))) return "nodejs";
    if (present.has(`${parts.slice(0, end).join("/")}.py`) || present.has(`${stem.replaceAll(".", "/")}/__init__.py`))
      return "python";
  }
  throw new ThawError("CODE_INVALID", {
    what: `The runtime for handler "${handler}" could not be guessed`,
    why: `the code package has no file ${parts[0] ?? ""}.js, .mjs, .cjs or .py`,
    fix: "Correct --handler, or name the runtime with --runtime",
  });
}

function pick(family: Family, runtimes: readonly string[]): string {
  const found = runtimes.find((id) => id.startsWith(family));
  if (found === undefined) throw missingRuntime(family === "nodejs" ? "Node" : "Python", runtimes);
  return found;
}

function missingRuntime(name: string, runtimes: readonly string[]): ThawError {
  return new ThawError("RUNTIME_MISSING", {
    what: `Runtime "${name}" is not available`,
    why: runtimes.length === 0 ? "this machine has no interpreter that thaw knows" : `this machine has ${runtimes.join(", ")}`,
    fix: "Use one of those, or install the interpreter and start the server again",
  });
}
