"use strict";
/*
 * Garbage collection before a freeze that does not undo what the function has become.
 *
 * A collection that somebody calls for (`gc()`) marks in one go, and V8 11.3 then decides which object shapes ("maps") to keep while
 * next to nothing is marked yet: the shapes of all objects that a request makes and drops die with it, and with them every piece of
 * optimised code that knows them ("deoptimization, reason: weak objects"). Seen after one such collection: 7 of 7 functions of a
 * parser, 4 of 4 around a regular expression, back in the interpreter, and the next request 7 times slower. A collection that
 * V8 runs by itself has marked nearly everything when it comes to shapes, and keeps them. So one of those is brought about: marking is
 * told to begin, V8 goes on with it in tasks of the event loop and on its own thread, and a registered object tells the end.
 * Measured, three rounds of each on 45 and 300 MB of garbage: CPU 33 and 93 ms against 41 and 80 ms, what remained 14 and 21 MB
 * against 16 and 29 MB; code of seven functions (all tiers) was the same before and after.
 *
 * Each collection also ages code, and the sixth takes the bytecode of what did not run in between: an image is collected three times
 * for each generation, which says nothing about use. So nothing ages meanwhile.
 */
const { getHeapCodeStatistics, setFlagsFromString } = require("node:v8");
const { runInNewContext } = require("node:vm");

const { setImmediate, setInterval, clearInterval } = globalThis;

/** Marking takes about 2 ms for each megabyte of small objects; a heap that is not done by then is marked in one go. */
const ROUND_MS_MAX = 5000;
/**
 * Marking that V8 had begun by itself takes the registered object for one that lives, and ends without telling: the next one, which
 * has to be brought about as well, does not.
 */
const AGAIN_MS = 20;

const now = performance.now.bind(performance);

let collect;
let onCollected = null;
const registry = new FinalizationRegistry(() => onCollected?.());

/** Flags are put back at once for the sake of Node's code cache (flags.cjs). */
function withFlag(name, use) {
  setFlagsFromString(`--${name}`);
  try {
    return use();
  } finally {
    setFlagsFromString(`--no-${name}`);
  }
}

/** In a frame of its own, so that nothing on the stack knows the object. */
function registerGarbage() {
  registry.register({}, undefined);
}

/** One full collection; `done` is called in a later turn of the event loop. */
function round(done) {
  const begun = now();
  const finish = () => {
    onCollected = null;
    clearInterval(timer);
    setImmediate(done);
  };
  const begin = () => {
    if (onCollected === null) return;
    if (now() - begun < ROUND_MS_MAX) {
      withFlag("stress-incremental-marking", () => collect({ type: "minor" }));
      return;
    }
    collect();
    finish();
  };
  const timer = setInterval(begin, AGAIN_MS);
  onCollected = finish;
  registerGarbage();
  // Behind the end of this job: until then the object is in use.
  setImmediate(begin);
}

/**
 * V8 sweeps behind the program's back, and what was swept waits until somebody needs room in the old generation: that one puts the free
 * pieces of all pages in their lists, and writes to the head of each page and to its lists. Left to the first request after a thaw, it took 199 of its 350
 * page faults (80 MB of small objects). These statistics walk the heap, for which V8 brings sweeping to an end first.
 */
function finishSweeping() {
  getHeapCodeStatistics();
}

/** Collects `rounds` times, with turns of the event loop in between, so that finalizers run. Then calls `done`. */
function collectGarbage(rounds, done) {
  collect ??= withFlag("expose-gc", () => runInNewContext("gc"));
  setFlagsFromString("--no-flush-bytecode");
  const next = (left) => {
    if (left > 0) {
      round(() => next(left - 1));
      return;
    }
    setFlagsFromString("--flush-bytecode");
    finishSweeping();
    done();
  };
  next(rounds);
}

module.exports = { collectGarbage, withFlag };
