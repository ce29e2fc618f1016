"use strict";
/*
 * From a handler string, `dir/file.export.path`, to a function: Lambda's rules. Order: the name as it stands, `.js`
 * (CommonJS unless the nearest package.json says module), `.mjs`, `.cjs`, then node's own resolution.
 */
const fs = require("node:fs");
const path = require("node:path");
const Module = require("node:module");
const { runtimeError, textOf } = require("./errors.cjs");

function split(handlerName) {
  if (handlerName.includes("..")) {
    throw runtimeError("MalformedHandlerName", `'${handlerName}' is not a valid handler name: '..' is not allowed in it`);
  }
  const base = path.basename(handlerName);
  const directory = handlerName.slice(0, handlerName.length - base.length);
  const match = /^([^.]+)\.(.+)$/.exec(base);
  if (match === null) {
    throw runtimeError("MalformedHandlerName", `Bad handler '${handlerName}': it must look like file.export`);
  }
  return { directory, file: match[1], exportPath: match[2] };
}

/** Whether the nearest package.json above `file` says `"type": "module"`. Looks no higher than a node_modules or the root. */
function isModuleScope(file) {
  for (let directory = path.dirname(file); ; directory = path.dirname(directory)) {
    try {
      return JSON.parse(fs.readFileSync(path.join(directory, "package.json"), "utf8")).type === "module";
    } catch (error) {
      if (error.code !== "ENOENT" && error.code !== "ENOTDIR") return false;
    }
    if (directory === path.dirname(directory) || path.basename(directory) === "node_modules") return false;
  }
}

function isFile(file) {
  return fs.statSync(file, { throwIfNoEntry: false })?.isFile() === true;
}

function requireFrom(root) {
  return Module.createRequire(path.join(root, "/"));
}

/**
 * Whether this Node can load a graph of modules in one go, and imports afterwards what was loaded so, or failed so, as if it had not been:
 * 20.20, 22.20, 24.11 and 26 were tried; 20.19 and 22.12 take a module that had thrown for a whole one.
 */
const [major, minor] = process.versions.node.split(".").map(Number);
const LOADS_AT_ONCE = process.features.require_module === true && ((major !== 20 && major !== 22) || minor >= 20) && major !== 23;
/** Who hooks into imports finds them where they are. */
const HOOKED = /(^|\s)(-r|--(import|require|loader|experimental-loader))\b/.test(process.env.NODE_OPTIONS ?? "");

/**
 * `import(file)`, but this thread reads the files. `import` has the four threads of libuv's pool read them, which every clone has then: 0.2 MB
 * of memory each, and a tenth of the time that a start takes, whether or not the function ever needs them. What cannot be loaded in one
 * go (it awaits at top level, say) is imported after all, and nothing runs twice.
 */
async function importModule(load, file) {
  let failed;
  try {
    if (LOADS_AT_ONCE && !HOOKED) load(file);
  } catch (error) {
    failed = error;
  }
  try {
    return await import(file);
  } catch (error) {
    // Up to Node 24 that is said of modules that could not be linked.
    throw failed !== undefined && error?.code === "ERR_INTERNAL_ASSERTION" ? failed : error;
  }
}

async function requireOrImport(load, file) {
  try {
    return load(file);
  } catch (error) {
    // A module in ESM syntax that awaits at top level cannot be required.
    if (error?.code === "ERR_REQUIRE_ASYNC_MODULE" || error?.code === "ERR_REQUIRE_ESM") return await import(file);
    throw error;
  }
}

async function loadModule(root, directory, file) {
  const load = requireFrom(root);
  const target = path.resolve(root, directory, file);
  if (isFile(target)) return await requireOrImport(load, target);
  if (isFile(`${target}.js`)) {
    return isModuleScope(target) ? await importModule(load, `${target}.js`) : await requireOrImport(load, `${target}.js`);
  }
  if (isFile(`${target}.mjs`)) return await importModule(load, `${target}.mjs`);
  if (isFile(`${target}.cjs`)) return await requireOrImport(load, `${target}.cjs`);
  return load(load.resolve(file, { paths: [root, path.join(root, directory)] }));
}

const PLACE = /^(file:\/\/)?\/.*:\d+$/;
/** For all modules together: loading as a whole is bounded, too. */
const CHECK_MS = 5_000;
const IMPORTED = /\b(?:import|export)\b[^'"`;]*?['"](\.{1,2}\/[^'"]+)['"]/g;

/** Where Node says that the mistake is: the line ahead of what it shows of the source. Undefined for ESM, of which it tells nobody. */
function placeOf(error) {
  const [first = ""] = typeof error.stack === "string" ? error.stack.split("\n", 1) : [];
  return PLACE.test(first) ? first : undefined;
}

/** Where it is in ESM: a Node of its own is asked for each module, from the handler's on along relative imports, until one does not like what it reads. */
function placeInModules(target) {
  const { spawnSync } = require("node:child_process");
  const files = ["", ".js", ".mjs"]
    .map((end) => `${target}${end}`)
    .filter(isFile)
    .slice(0, 1);
  const end = Date.now() + CHECK_MS;
  // It grows as imports are found.
  for (const file of files) {
    const timeout = end - Date.now();
    if (timeout <= 0) return undefined;
    const { stderr } = spawnSync(process.execPath, ["--check", file], { encoding: "utf8", timeout });
    const place = stderr?.split("\n").find((line) => PLACE.test(line));
    if (place !== undefined) return place;
    for (const [, name] of fs.readFileSync(file, "utf8").matchAll(IMPORTED)) {
      const next = path.resolve(path.dirname(file), name);
      if (!files.includes(next) && isFile(next)) files.push(next);
    }
  }
  return undefined;
}

/** In brackets; empty where nobody knows. */
function placeText(error, target) {
  try {
    const place = placeOf(error) ?? placeInModules(target);
    return place === undefined ? "" : ` (${place.replace("file://", "")})`;
  } catch {
    return "";
  }
}

/** Of a module that is not there, without the file that stands for the folder from which we require (Node calls it so; nobody has it). */
function missingText(error) {
  const text = textOf(error).replace(/\n- [^\n]*\/noop\.js(?=\n|$)/g, "");
  return text.replace(/\nRequire stack:$/, "");
}

let last;

/** What was loaded last: `{root, handler, exports}`; undefined before. */
function loaded() {
  return last;
}

/** Loads `handlerName` below `root`. Fails with one of Lambda's error names, or with what the user's code threw. */
async function loadHandler(root, handlerName) {
  const { directory, file, exportPath } = split(handlerName);
  let exports;
  try {
    exports = await loadModule(root, directory, file);
  } catch (error) {
    if (error instanceof SyntaxError)
      throw runtimeError(
        "UserCodeSyntaxError",
        `${textOf(error)}${placeText(error, path.resolve(root, directory, file))}`,
        error,
      );
    if (error?.code === "MODULE_NOT_FOUND" || error?.code === "ERR_MODULE_NOT_FOUND") {
      throw runtimeError("ImportModuleError", missingText(error), error);
    }
    throw error;
  }
  let handler = exports;
  for (const key of exportPath.split(".")) handler = handler?.[key];
  // `module.exports = {…}` imported as a module has its members on `default`.
  if (handler === undefined && exports?.default) {
    handler = exports.default;
    for (const key of exportPath.split(".")) handler = handler?.[key];
  }
  if (handler === undefined || handler === null) {
    throw runtimeError("HandlerNotFound", `${handlerName} is undefined or not exported`);
  }
  if (typeof handler !== "function") throw runtimeError("HandlerNotFound", `${handlerName} is not a function`);
  last = { root: path.resolve(root), handler, exports };
  return handler;
}

module.exports = { loadHandler, loaded };
