"use strict";
/*
 * How far V8 has optimised the function's own code (Ignite, HotOS'21: what a hot instance has and a new one has not).
 *
 *   objects    ◀── a walk: the handler, what modules export, and from there members, classes, prototypes, elements of collections,
 *                  and the variables that functions enclose
 *   functions  ◀── those of the user's scripts
 *   tiers      ◀── %GetOptimizationStatus
 *
 * A module's private functions are members of nothing; what finds them is the scope of those that use them, which only the
 * inspector shows. It is asked in-process (no port, no thread), with neither the debugger nor the profiler switched on, both of which would
 * throw optimised code away. Bounded in number and time. Nothing of the function runs: members are read by descriptor, so no getter is
 * called, and proxies are passed by. Nothing is kept afterwards.
 *
 * Not seen: functions that nothing living refers to (an inlined helper of a finished call), those behind WeakMaps and private
 * members (#x) alone, and those of workers and other contexts.
 */
const { readFileSync } = require("node:fs");
const Module = require("node:module");
const path = require("node:path");
const { types } = require("node:util");
const { getHeapCodeStatistics } = require("node:v8");
const { runInThisContext } = require("node:vm");
const { withFlag } = require("./collector.cjs");

const now = performance.now.bind(performance);
const { getOwnPropertyDescriptors, getPrototypeOf } = Object;
const { ownKeys } = Reflect;
const { entries } = Map.prototype;
const { values } = Set.prototype;

const FUNCTIONS_MAX = 5000;
/** Objects, functions included, that the walk looks at. */
const OBJECTS_MAX = 50_000;
/** Of a list or a collection. */
const ELEMENTS_MAX = 1000;
/** Looking at a scope takes 0.15 ms, at everything else of a function 2 us. */
const WALK_MS_MAX = 30;

/** Bits of %GetOptimizationStatus, the same since V8 11. */
const TURBOFANNED = 1 << 6;
const MAGLEVVED = 1 << 5;
const BASELINE = 1 << 15;
/** Never compiled, so never called; or so long ago that its bytecode was dropped. */
const LAZY = 1 << 18;

/** The key under which the inspector's expressions find what is meant; there while they run. */
const KEY = "thaw:heat";

/** Must be compiled while V8 knows the syntax, so it is called once at once. */
function natives() {
  return withFlag("allow-natives-syntax", () => {
    const made = runInThisContext(
      "({ status: (f) => %GetOptimizationStatus(f), scriptId: (f) => %FunctionGetScriptId(f), source: (f) => %FunctionGetScriptSource(f) })",
      { filename: "thaw:heat" },
    );
    for (const native of Object.values(made)) native(natives);
    return made;
  });
}

/** An in-process inspector session; its calls are synchronous. */
function openSession() {
  const { Session } = require("node:inspector");
  const session = new Session();
  session.connect();
  const post = (method, parameters) => {
    let result;
    session.post(method, parameters, (error, value) => {
      if (error) throw Object.assign(new Error(`${method}: ${error.message}`), error);
      result = value;
    });
    return result;
  };
  return { post, close: () => session.disconnect() };
}

/** Sources of Node's own modules and of this runtime's, by length; V8 holds the very same texts as those of their scripts. */
function sourcesOfOthers() {
  const silent = process.noDeprecation;
  process.noDeprecation = true;
  let nodes;
  try {
    nodes = Object.values(process.binding("natives"));
  } finally {
    process.noDeprecation = silent;
  }
  const ours = Object.keys(Module._cache).filter((file) => path.dirname(file) === __dirname);
  const byLength = new Map();
  for (const source of [...nodes, ...ours.map((file) => readFileSync(file, "utf8"))]) {
    if (typeof source !== "string") continue;
    const same = byLength.get(source.length);
    if (same === undefined) byLength.set(source.length, [source]);
    else same.push(source);
  }
  return byLength;
}

/** Tells the user's functions (layers too) from Node's, V8's and this runtime's. A function does not know its file, but its script. */
function makeIsOwn({ scriptId, source }) {
  const others = sourcesOfOthers();
  const known = new Map([[-1, false]]);
  return (fn) => {
    const id = scriptId(fn);
    let own = known.get(id);
    if (own === undefined) {
      const text = source(fn);
      own = typeof text === "string" && others.get(text.length)?.includes(text) !== true;
      known.set(id, own);
    }
    return own;
  };
}

/** What a function encloses: calls `take` with each variable's value. Global scope is left out. */
function makeScopes(post) {
  const slot = { function: undefined, take: undefined };
  Object.defineProperty(globalThis, KEY, { value: slot, configurable: true });
  const group = { objectGroup: KEY };
  return {
    look(fn, take) {
      slot.function = fn;
      slot.take = (scopes) => {
        for (let i = 0; i < scopes.length; i++) if (scopes[i] !== globalThis) take(scopes[i]);
      };
      const { objectId } = post("Runtime.evaluate", { expression: `globalThis["${KEY}"].function`, ...group }).result;
      const { internalProperties = [] } = post("Runtime.getProperties", { objectId, ownProperties: true });
      const scopes = internalProperties.find(({ name }) => name === "[[Scopes]]")?.value?.objectId;
      if (scopes === undefined) return;
      const functionDeclaration = `function () { globalThis["${KEY}"].take(this); }`;
      post("Runtime.callFunctionOn", { objectId: scopes, functionDeclaration, ...group });
    },
    close() {
      delete globalThis[KEY];
      post("Runtime.releaseObjectGroup", group);
    },
  };
}

/** Breadth first from `roots`; `isOwn` tells functions whose scopes are worth a look. */
function walk(roots, isOwn, look) {
  const deadline = now() + WALK_MS_MAX;
  const seen = new Set();
  const functions = [];
  const objects = [];
  const enclosing = [];
  const take = (value) => {
    const kind = typeof value;
    if (value === null || (kind !== "function" && kind !== "object") || seen.size >= OBJECTS_MAX || seen.has(value)) return;
    seen.add(value);
    if (types.isProxy(value) || ArrayBuffer.isView(value)) return;
    objects.push(value);
    if (kind !== "function" || functions.length >= FUNCTIONS_MAX || !isOwn(value)) return;
    functions.push(value);
    enclosing.push(value);
  };
  const takeMembers = (value) => {
    if (Array.isArray(value)) {
      for (let i = 0; i < value.length && i < ELEMENTS_MAX; i++) {
        const member = Object.getOwnPropertyDescriptor(value, i);
        if (member !== undefined) take(member.value);
      }
      return;
    }
    // A table with as many members as this holds data, and reading it takes long.
    const keys = ownKeys(value);
    if (keys.length <= ELEMENTS_MAX) {
      const members = getOwnPropertyDescriptors(value);
      for (const key of keys) {
        const { value: member, get, set } = members[key];
        take(member);
        take(get);
        take(set);
      }
    }
    let left = ELEMENTS_MAX;
    if (types.isMap(value)) {
      for (const [key, member] of entries.call(value)) {
        if (left-- === 0) break;
        take(key);
        take(member);
      }
    } else if (types.isSet(value)) {
      for (const member of values.call(value)) {
        if (left-- === 0) break;
        take(member);
      }
    }
  };
  for (const root of roots) take(root);
  while (now() < deadline) {
    const object = objects.shift();
    if (object !== undefined) {
      // A module's namespace throws where a variable has no value yet.
      try {
        takeMembers(object);
        take(getPrototypeOf(object));
      } catch {}
      continue;
    }
    const fn = enclosing.shift();
    if (fn === undefined) break;
    look(fn, take);
  }
  return functions;
}

function modulesBelow(root) {
  const below = [];
  for (const [file, module] of Object.entries(Module._cache)) if (file.startsWith(`${root}/`)) below.push(module.exports);
  return below;
}

function measure({ root, handler, exports }) {
  const native = natives();
  const session = openSession();
  let functions;
  try {
    const scopes = makeScopes(session.post);
    try {
      functions = walk([handler, exports, ...modulesBelow(root)], makeIsOwn(native), scopes.look);
    } finally {
      scopes.close();
    }
  } finally {
    session.close();
  }
  const tiers = { interpreted: 0, baseline: 0, optimised: 0 };
  for (const fn of functions) {
    const bits = Number(native.status(fn));
    if ((bits & (TURBOFANNED | MAGLEVVED)) !== 0) tiers.optimised += 1;
    else if ((bits & BASELINE) !== 0) tiers.baseline += 1;
    else if ((bits & LAZY) === 0) tiers.interpreted += 1;
  }
  return { functions: functions.length, tiers, codeBytes: getHeapCodeStatistics().code_and_metadata_size };
}

/**
 * `{functions, tiers: {interpreted, baseline, optimised}, codeBytes}`; functions that are in no tier were never called. Undefined
 * when nothing was loaded, and on a Node that cannot tell (built without inspector, other names inside V8).
 * @param loaded what handler.cjs knows of the handler, or undefined
 */
function codeHeat(loaded) {
  if (loaded === undefined) return undefined;
  try {
    return measure(loaded);
  } catch {
    return undefined;
  }
}

module.exports = { codeHeat };
