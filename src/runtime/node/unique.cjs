"use strict";
/*
 * What two thaws of one image must not share. `install` runs once in each thread, before the user's code is loaded: what it
 * replaces cannot be reached in its old form by any import. `renew` runs in the main thread after each thaw, before everything
 * of the user's; worker threads, which go on by themselves, see it by the word that renewal.cjs keeps for all.
 *
 * - `Math.random`: V8 keeps 64 numbers ahead for each context and a generator for each isolate, both out of reach. It is
 *   replaced by sfc32 (C. Doty-Humphrey, PractRand), 53 bits from two draws, here and in every context that `vm` makes.
 *   A context whose sandbox brings its own `Math` keeps it.
 * - `crypto.randomUUID` and `randomInt` keep random bytes ahead: both now draw each time. `randomBytes`, Web Crypto and
 *   TLS draw from OpenSSL, which reseeds when the process id changed; the engine never repeats one within a lineage.
 * - `process.pid` is a constant in Node. `process.ppid` is not.
 * - what some libraries keep of random bytes: kept.cjs.
 * - the generator of SQLite: sqlite.cjs.
 *
 * Not reached: contexts made by native addons. `performance.now()` counts the time spent frozen and never goes back;
 * `performance.timeOrigin` stays that of the boot.
 */
const crypto = require("node:crypto");
const vm = require("node:vm");
const workerThreads = require("node:worker_threads");
const { readlinkSync } = require("node:fs");
const { syncBuiltinESMExports } = require("node:module");
const kept = require("./kept.cjs");
const sqlite = require("./sqlite.cjs");
const { MARK, ENTROPY, ENTROPY_WORDS, words, changed } = require("./renewal.cjs");

const { randomFillSync } = crypto;
const { nextTick } = process;
const { getOwnPropertyDescriptor } = Object;
/** kBatchSize of lib/internal/crypto/random.js. */
const UUIDS_AHEAD = 128;

/**
 * Also compiled from its source inside other contexts, so it uses nothing from around it but its arguments. `s` is the state, and in its
 * last element the mark `w[0]` for which it was made: another one means that it must be renewed before the next draw, and not sooner, as
 * most requests draw nothing, and OpenSSL takes its time.
 */
function makeRandom(s, w, refresh) {
  return {
    random() {
      if (s[4] !== w[0]) refresh(s);
      let a = s[0];
      let b = s[1];
      let c = s[2];
      let d = s[3];
      let t = (((a + b) | 0) + d) | 0;
      d = (d + 1) | 0;
      a = b ^ (b >>> 9);
      b = (c + (c << 3)) | 0;
      c = (c << 21) | (c >>> 11);
      c = (c + t) | 0;
      const high = t >>> 5;
      t = (((a + b) | 0) + d) | 0;
      d = (d + 1) | 0;
      s[0] = b ^ (b >>> 9);
      s[1] = (c + (c << 3)) | 0;
      c = (c << 21) | (c >>> 11);
      s[2] = (c + t) | 0;
      s[3] = d;
      return (high * 67108864 + (t >>> 6)) / 9007199254740992;
    },
  }.random;
}

/** Of a generator's state: the mark that it was made for. */
const MADE_FOR = 4;
const ownState = newState();
const random = makeRandom(ownState, words, refresh);
const seed = new Int32Array(ENTROPY_WORDS);
const seedBytes = Buffer.from(seed.buffer);

let contextSetup;

/** To be renewed before the first draw. */
function newState() {
  const state = new Int32Array(5);
  state[MADE_FOR] = words[MARK] - 1;
  return state;
}

function installInContext(context) {
  contextSetup ??= new vm.Script(
    `((s, w, refresh) => { Object.defineProperty(Math, "random", { value: (${makeRandom})(s, w, refresh), writable: true, enumerable: false, configurable: true }); })`,
    { filename: "thaw:random" },
  );
  contextSetup.runInContext(context)(newState(), words, refresh);
}

function installVm() {
  const original = {
    createContext: vm.createContext,
    runInNewContext: vm.runInNewContext,
    script: vm.Script.prototype.runInNewContext,
  };
  const make = (sandbox, options) => {
    const known = typeof sandbox === "object" && sandbox !== null && vm.isContext(sandbox);
    const ownMath = typeof sandbox === "object" && sandbox !== null && "Math" in sandbox;
    const context = original.createContext(sandbox, options);
    if (!known && !ownMath) installInContext(context);
    return context;
  };
  /** `runInNewContext` makes a context from these members of its own options. */
  const contextOptions = (options) =>
    typeof options !== "object" || options === null
      ? undefined
      : {
          ...(options.contextName === undefined ? {} : { name: options.contextName }),
          ...(options.contextOrigin === undefined ? {} : { origin: options.contextOrigin }),
          ...(options.contextCodeGeneration === undefined ? {} : { codeGeneration: options.contextCodeGeneration }),
          ...(options.microtaskMode === undefined ? {} : { microtaskMode: options.microtaskMode }),
        };
  const own = {
    createContext(contextObject = {}, options = undefined) {
      return make(contextObject, options);
    },
    runInNewContext(code, contextObject, options) {
      return original.runInNewContext(code, make(contextObject ?? {}, contextOptions(options)), options);
    },
  };
  vm.createContext = own.createContext;
  vm.runInNewContext = own.runInNewContext;
  vm.Script.prototype.runInNewContext = {
    runInNewContext(contextObject, options) {
      return original.script.call(this, make(contextObject ?? {}, contextOptions(options)), options);
    },
  }.runInNewContext;
}

function installCrypto() {
  const originalUuid = crypto.randomUUID;
  const originalInt = crypto.randomInt;
  const uncached = { disableEntropyCache: true };
  installBlobNames(originalUuid);
  const six = Buffer.allocUnsafeSlow(6);
  const draw = (min, range) => {
    const limit = 2 ** 48 - (2 ** 48 % range);
    for (;;) {
      const x = randomFillSync(six).readUIntBE(0, 6);
      if (x < limit) return min + (x % range);
    }
  };
  const own = {
    randomUUID(options) {
      if (options === undefined) return originalUuid(uncached);
      // Node's own checks, then the same without its cache.
      const uuid = originalUuid(options);
      return options.disableEntropyCache === true ? uuid : originalUuid(uncached);
    },
    randomInt(min, max, callback) {
      const oneBound = max === undefined || typeof max === "function";
      const low = oneBound ? 0 : min;
      const high = oneBound ? min : max;
      const done = oneBound ? max : callback;
      const valid =
        (done === undefined || typeof done === "function") &&
        Number.isSafeInteger(low) &&
        Number.isSafeInteger(high) &&
        high > low &&
        high - low <= 2 ** 48 - 1;
      if (!valid) return originalInt(min, max, callback); // throws what Node throws
      const value = draw(low, high - low);
      if (done === undefined) return value;
      nextTick(done, undefined, value);
    },
  };
  crypto.randomUUID = own.randomUUID;
  crypto.randomInt = own.randomInt;

  const webcrypto = crypto.webcrypto;
  const prototype = Object.getPrototypeOf(webcrypto);
  const originalWeb = prototype.randomUUID;
  prototype.randomUUID = {
    randomUUID() {
      return this === webcrypto ? originalUuid(uncached) : originalWeb.call(this); // throws what Node throws
    },
  }.randomUUID;
}

/**
 * Node names blobs (`blob:nodedata:…`) by its own randomUUID, with bytes that it keeps ahead; no other use of them is known. What is left of them is
 * thrown away before the first name after a renewal.
 */
function installBlobNames(originalUuid) {
  const property = getOwnPropertyDescriptor(URL, "createObjectURL");
  if (property === undefined) return;
  const original = property.value;
  let mark = words[MARK];
  const own = {
    createObjectURL(object) {
      if (mark !== words[MARK]) {
        mark = words[MARK];
        for (let i = 0; i < UUIDS_AHEAD; i++) originalUuid();
      }
      return original.call(this, object);
    },
  };
  Object.defineProperty(URL, "createObjectURL", { ...property, value: own.createObjectURL });
}

/** A worker loads worker.cjs first because it inherits the flag that says so; one that is given an `execArgv` of its own inherits none. */
function installWorkers() {
  const { Worker } = workerThreads;
  const flag = `--require=${__dirname}/worker.cjs`;
  workerThreads.Worker = new Proxy(Worker, {
    construct(target, [filename, options, ...others], newTarget) {
      const own = Array.isArray(options?.execArgv) ? { ...options, execArgv: [flag, ...options.execArgv] } : options;
      return Reflect.construct(target, [filename, own, ...others], newTarget);
    },
  });
  Worker.prototype.constructor = workerThreads.Worker;
}

/** Replaces what cannot be renewed. Once, before the user's code. */
function install() {
  Object.defineProperty(Math, "random", { value: random, writable: true, enumerable: false, configurable: true });
  installVm();
  installCrypto();
  installWorkers();
  kept.install();
  syncBuiltinESMExports();
  rehearse();
}

/**
 * Renewing happens once in thousands of draws. Code that was optimised without having seen it would be thrown away by the first draw
 * after a thaw, together with the function that it was inlined in; V8 remembers what it saw from about the eighth call on.
 */
function rehearse() {
  for (let i = 0; i < 24; i++) {
    ownState[MADE_FOR] = words[MARK] - 1;
    random();
  }
  ownState[MADE_FOR] = words[MARK] - 1;
}

/** A new state from the system's entropy and, after a thaw, the server's. */
function refresh(state) {
  state[MADE_FOR] = words[MARK];
  randomFillSync(seedBytes);
  for (let i = 0; i < ENTROPY_WORDS; i++) seed[i] ^= words[ENTROPY + i];
  for (let i = 0; i < 4; i++) state[i] = seed[i] ^ seed[i + 4];
}

let { pid } = process;
let pidMark = words[MARK];

/** The kernel's word on who this is, asked for when it is needed; the server's, or the last one, where /proc cannot be read. */
function livePid() {
  if (pidMark !== words[MARK]) {
    pidMark = words[MARK];
    try {
      pid = Number(readlinkSync("/proc/self"));
    } catch {
      // as it is
    }
  }
  return pid;
}

const LIVE_PID = { get: livePid, enumerable: true, configurable: true };

/** Renews everything. `thaw` is the member of that name of a request's header. */
function renew(thaw) {
  pid = thaw.pid;
  // To define it again would write to what V8 keeps of that object.
  if (getOwnPropertyDescriptor(process, "pid")?.get !== livePid) Object.defineProperty(process, "pid", LIVE_PID);
  changed(thaw.entropy);
  kept.renew();
  sqlite.renew();
}

/** What libraries keep for a worker, which renews nothing by itself: each time that its event loop hears of a renewal. */
async function renewKept() {
  for (;;) {
    await Atomics.waitAsync(words, MARK, words[MARK]).value;
    kept.renew();
  }
}

/** Once in a worker thread, before the user's code: `install`, and it renews itself as soon as it may run after a thaw. */
function installInWorker() {
  install();
  Object.defineProperty(process, "pid", LIVE_PID);
  void renewKept();
}

module.exports = { install, installInWorker, remember: sqlite.remember, renew };
