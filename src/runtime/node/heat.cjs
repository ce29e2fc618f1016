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

/** What Node's own modules say near their top, one or the other. Comparing with their sources would be exact, and add 0.4 MB to an image. */
const NODES = ["} = primordials;", "/* eslint-disable node-core/"];

/** Tells the user's functions (layers too) from Node's, V8's and this runtime's. A function does not know its file, but its script. */
function makeIsOwn({ scriptId, source }, bootstrap) {
  const known = new Map([
    [-1, false],
    [scriptId(bootstrap), false],
    [scriptId(Function.prototype), false],
  ]);
  for (const [file, { exports }] of Object.entries(Module._cache)) {
    if (path.dirname(file) !== __dirname) continue;
    for (const member of Object.values(exports)) if (typeof member === "function") known.set(scriptId(member), false);
  }
  return (fn) => {
    const id = scriptId(fn);
    let own = known.get(id);
    if (own === undefined) {
      const text = source(fn);
      own = typeof text === "string" && !NODES.some((mark) => text.includes(mark));
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
    if (kind === "function") {
      // What belongs to others leads to everything, and some of it is made when looked at.
      if (functions.length >= FUNCTIONS_MAX || !isOwn(value)) return;
      functions.push(value);
      enclosing.push(value);
    }
    objects.push(value);
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

/** The user's functions that can be found from `roots`; `deep`: in what they enclose, too. */
function find(roots, isOwn, deep) {
  if (!deep) return walk(roots, isOwn, () => {});
  const session = openSession();
  try {
    const scopes = makeScopes(session.post);
    try {
      return walk(roots, isOwn, scopes.look);
    } finally {
      scopes.close();
    }
  } finally {
    session.close();
  }
}

function measure({ root, handler, exports }, { served, bootstrap }) {
  const native = natives();
  const functions = find([handler, exports, ...modulesBelow(root)], makeIsOwn(native, bootstrap), served);
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
 * @param about `served`: whether there were requests. Before the first one little has run, and the inspector (0.6 MB of an image, 5 ms) is
 *   not asked: functions that others enclose are not counted then. `bootstrap`: any function of bootstrap.cjs.
 */
function codeHeat(loaded, about) {
  if (loaded === undefined) return undefined;
  try {
    return measure(loaded, about);
  } catch {
    return undefined;
  }
}

module.exports = { codeHeat };
