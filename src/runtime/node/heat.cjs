"use strict";
/*
 * How far V8 has optimised the function's own code (Ignite, HotOS'21: what a hot instance has and a new one has not).
 *
 *   objects    ◀── a walk: the handler, what modules export, and from there members, classes, prototypes, elements of collections
 *   functions  ◀── those of the user's scripts
 *   tiers      ◀── %GetOptimizationStatus
 *
 * Bounded in number and time. Nothing of the function runs: members are read by descriptor, so no getter is called, and proxies are
 * passed by. Nothing is kept afterwards, and no code falls back for having been looked at.
 *
 * Not seen: a module's private functions that nothing exported refers to (its helpers, what closures enclose, private members (#x)),
 * ESM modules but the handler's own, what is behind WeakMaps, workers and other contexts. So the counts are a sample, to be compared with
 * those of the same function's other images.
 *
 * The inspector would show the scopes in which private functions are. But asking it, though in-process and with neither debugger nor
 * profiler switched on, takes back what V8 had optimised of Node itself (nextTick, processImmediate, async contexts, EventEmitter: "code
 * dependencies", "wrong map"). The first request of a hot Fastify application took 2.1 ms after it, 1.3 to 1.7 without; preparing 55 ms
 * and 14. With more rounds on a busy machine (docs/design/runtime.md): 2.0 to 2.2 ms and 1.8 to 2.0; 52 ms and 27.
 */
const Module = require("node:module");
const path = require("node:path");
const { types } = require("node:util");
const { getHeapCodeStatistics } = require("node:v8");
const { runInThisContext } = require("node:vm");
const { withFlag } = require("./collector.cjs");

const now = performance.now.bind(performance);
const { cpuUsage } = process;
const { getOwnPropertyDescriptors, getPrototypeOf } = Object;
const { ownKeys } = Reflect;
const { entries } = Map.prototype;
const { values } = Set.prototype;

const FUNCTIONS_MAX = 5000;
/** Objects, functions included, that the walk looks at. */
const OBJECTS_MAX = 50_000;
/** Of a list or a collection. */
const ELEMENTS_MAX = 1000;
/** Looking at a function takes about 2 us. */
const WALK_MS_MAX = 30;

/** Of a function that was never called, so never compiled, %GetOptimizationStatus has this bit on top: 18 since V8 11, 17 in V8 14. */
const neverCalled = () => undefined;
const topBit = (bits) => 1 << (31 - Math.clz32(bits));
/** What the others are to it; the same in all of these. The first two are optimised code. */
const [TURBOFANNED, MAGLEVVED, BASELINE] = [12, 13, 3];

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

/** The user's functions that can be found from `roots`, breadth first. */
function walk(roots, isOwn) {
  const deadline = now() + WALK_MS_MAX;
  const before = cpuUsage();
  // Of time in which others had the processor nothing is lost. Asking for that takes longer than looking at the clock.
  const mayGoOn = () => {
    if (now() < deadline) return true;
    const { user, system } = cpuUsage(before);
    return user + system < WALK_MS_MAX * 1000;
  };
  const seen = new Set();
  const functions = [];
  const objects = [];
  const take = (value) => {
    const kind = typeof value;
    if (value === null || (kind !== "function" && kind !== "object") || seen.size >= OBJECTS_MAX || seen.has(value)) return;
    seen.add(value);
    if (types.isProxy(value) || ArrayBuffer.isView(value)) return;
    if (kind === "function") {
      // What belongs to others leads to everything, and some of it is made when looked at.
      if (functions.length >= FUNCTIONS_MAX || !isOwn(value)) return;
      functions.push(value);
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
  while (objects.length > 0 && mayGoOn()) {
    const object = objects.shift();
    // A module's namespace throws where a variable has no value yet.
    try {
      takeMembers(object);
      take(getPrototypeOf(object));
    } catch {}
  }
  return functions;
}

function modulesBelow(root) {
  const below = [];
  for (const [file, module] of Object.entries(Module._cache)) if (file.startsWith(`${root}/`)) below.push(module.exports);
  return below;
}

function measure({ root, handler, exports }, bootstrap) {
  const native = natives();
  const functions = walk([handler, exports, ...modulesBelow(root)], makeIsOwn(native, bootstrap));
  const tiers = { interpreted: 0, baseline: 0, optimised: 0 };
  const lazy = topBit(native.status(neverCalled));
  for (const fn of functions) {
    const bits = native.status(fn);
    if ((bits & ((lazy >> TURBOFANNED) | (lazy >> MAGLEVVED))) !== 0) tiers.optimised += 1;
    else if ((bits & (lazy >> BASELINE)) !== 0) tiers.baseline += 1;
    // The others were never called, or so long ago that their bytecode was dropped.
    else if ((bits & lazy) === 0) tiers.interpreted += 1;
  }
  return { functions: functions.length, tiers, codeBytes: getHeapCodeStatistics().code_and_metadata_size };
}

/**
 * `{functions, tiers: {interpreted, baseline, optimised}, codeBytes}`; functions that are in no tier were never called. Undefined
 * when nothing was loaded, and on a Node that cannot tell (other names inside V8).
 * @param loaded what handler.cjs knows of the handler, or undefined
 * @param bootstrap any function of bootstrap.cjs
 */
function codeHeat(loaded, bootstrap) {
  if (loaded === undefined) return undefined;
  try {
    return measure(loaded, bootstrap);
  } catch {
    return undefined;
  }
}

module.exports = { codeHeat };
