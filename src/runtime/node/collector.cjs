"use strict";
/*
 * Garbage collection before a freeze that does not undo what the function has become.
 *
 * A collection that somebody calls for (`gc()`) marks in one go, and V8 11.3 then decides which object shapes ("maps") to keep while
 * next to nothing is marked yet: the shapes of all objects that a request makes and drops die with it, and with them every piece of
 * optimised code that knows them ("deoptimization, reason: weak objects"). Seen after one such collection: 7 of 7 functions of a
 * parser, 4 of 4 around a regular expression, back in the interpreter, and the next request 7 times slower. A collection that
 * V8 runs by itself has marked nearly everything when it comes to shapes, and keeps them. So one of those is brought about: marking is
 * told to begin, V8 goes on with it in tasks of the event loop and on its own thread, and something registered tells the end.
 * Measured, three rounds of each on 45 and 300 MB of garbage: CPU 33 and 93 ms against 41 and 80 ms, what remained 14 and 21 MB
 * against 16 and 29 MB; code of seven functions (all tiers) was the same before and after.
 *
 * One of V8's threads that took what there is to mark, and waits for a processor, leaves the program with nothing to do, and V8 takes that for the end ("finalize incremental
 * marking" after no step at all): shapes are decided on as they are by `gc()`. Seen on a busy machine in six of some hundred runs of one test, which lost Node's own
 * optimised code; with the wait for those threads, which is the first thing that marking does now, not once. The flag that keeps V8's threads out of it is no way: set in the middle of
 * marking, it makes V8 12.4 crash.
 *
 * Marking must not be told to begin right behind its end, before the news of that: it would begin anew, and the image be frozen in the middle of it. Seen in 2
 * of 12 images of 80 MB when it was told every 20 ms; the first request then had to bring it to its end, and wrote 250 to 900 pages instead of 150. An object that was registered
 * before marking began tells its end; one that was registered while V8 marks is taken for something that lives. So something is always registered, to hear of what V8
 * has begun by itself, and only such news has marking told to begin again; never while the statistics know of an end whose news has not come.
 *
 * Marking begins at the next look that V8 takes at its limits, for which there is a flag: behind a minor collection (V8 11 keeps more shapes
 * where one came first), or where something large gets its place among old objects. Since V8 13 (Node 24) a minor collection in
 * the middle of marking brings that to its end at once, and shapes die as they do by `gc()`. So there it is something large: a name for a property, which V8 copies.
 *
 * Each collection also ages code, and the sixth takes the bytecode of what did not run in between: an image is collected three times
 * for each generation, which says nothing about use. So nothing ages meanwhile.
 */
const { readFileSync, readdirSync, readlinkSync } = require("node:fs");
const { GCProfiler, getHeapCodeStatistics, setFlagsFromString } = require("node:v8");
const { runInNewContext } = require("node:vm");

const { setImmediate, setTimeout, clearTimeout } = globalThis;

/** Marking takes about 2 ms for each megabyte of small objects; a heap that is not done by then is marked in one go. */
const ROUND_MS_MAX = 5000;
/** Where the program kept that news from being heard, nothing is registered for the collection after it, and that one ends in silence. Doubled each time. */
const SILENT_MS = 100;

/**
 * A collection is over when objects of Node's own C++ heap are swept, too, beside the program and in tasks of the event loop: 1 to 3 ms, which nothing tells the end of.
 * Left to the first request after a thaw (6 of 10 images, on a busy machine), it woke a thread and wrote 20 pages of 150.
 */
const SWEPT_MS = 12;

/** A heap of 80 MB is marked in less; a function's own thread that never rests is not waited for much longer. */
const OTHERS_MS_MAX = 100;

const MINOR_ENDS_MARKING = Number.parseInt(process.versions.v8, 10) >= 13;
/** Above 128 KiB an object has pages of its own. These bytes are zero but for the first four, so that images need not store them. */
const large = MINOR_ENDS_MARKING ? Buffer.alloc(140_000) : undefined;
let names = 0;

const now = performance.now.bind(performance);
const { wait: waitFor } = Atomics;
const never = new Int32Array(new SharedArrayBuffer(4));

/** Whether a thread was waited for in vain in this collection: further rounds would wait as long for it, and requests for them. */
let restless = false;

let collect;
let profiler;
let onCollected = null;
let registered = 0;
const registry = new FinalizationRegistry((number) => {
  if (number === registered) registerGarbage();
  onCollected?.(number);
});

/** Flags are put back at once for the sake of Node's code cache (flags.cjs). */
function withFlag(name, use) {
  setFlagsFromString(`--${name}`);
  try {
    return use();
  } finally {
    setFlagsFromString(`--no-${name}`);
  }
}

/**
 * In a frame of its own, so that nothing on the stack knows what is registered. Returns its number. A symbol, because those are old from the
 * beginning: of young objects a minor collection tells, too, since V8 14.
 */
function registerGarbage() {
  registry.register(Symbol("garbage"), ++registered);
  return registered;
}
registerGarbage();

/** Has marking begin; does nothing while V8 marks. */
function beginMarking() {
  if (!MINOR_ENDS_MARKING) {
    withFlag("stress-incremental-marking", () => collect({ type: "minor" }));
    return;
  }
  large.writeUInt32LE(++names);
  const name = large.latin1Slice();
  withFlag("stress-incremental-marking", () => {
    ({})[name] = null;
  });
}

/** Whether a thread has work, or waits for a processor to do it. */
function works(task) {
  try {
    const stat = readFileSync(`/proc/self/task/${task}/stat`, "utf8");
    return stat.startsWith(") R", stat.lastIndexOf(")"));
  } catch {
    return false; // it has just ended
  }
}

/** Lets V8's threads come to an end with what they took; which those are nobody tells, so it waits for all. */
function leaveToThreads() {
  if (restless) return;
  const endMs = now() + OTHERS_MS_MAX;
  try {
    // Not `process.pid`: a clone that had no request yet has its image's.
    const own = readlinkSync("/proc/self");
    const others = () => readdirSync("/proc/self/task").filter((task) => task !== own);
    while (others().some(works)) {
      restless = now() >= endMs;
      if (restless) return;
      waitFor(never, 0, 0, 1);
    }
  } catch {
    // a function that may not read /proc
  }
}

function startProfiler() {
  profiler = new GCProfiler();
  profiler.start();
}

/** Whether a full collection has ended since the last call, or since {@link startProfiler}. */
function hasCollected() {
  const { statistics } = profiler.stop();
  startProfiler();
  return statistics.some(({ gcType }) => gcType === "MarkSweepCompact");
}

/** One full collection that begins now or later; `done` is called in a later turn of the event loop. */
function round(done) {
  const endMs = now() + ROUND_MS_MAX;
  let timer;
  let told = 0;
  let over = false;
  const begin = () => {
    // Of what has ended there is news to come, or silence, which the next turn of the timer ends.
    if (told >= own || hasCollected()) return;
    beginMarking();
    leaveToThreads();
  };
  const wait = (patienceMs) => {
    if (over) return;
    timer = setTimeout(
      () => {
        // The news is here, and waits for its turn.
        if (told >= own) return;
        if (now() >= endMs) {
          collect();
          onCollected(own);
          return;
        }
        begin();
        // Not before news that is on its way: where nobody ran for a while, this timer and the next are due at once.
        setImmediate(() => wait(patienceMs * 2));
      },
      Math.min(patienceMs, Math.ceil(endMs - now())),
    );
  };
  const own = registerGarbage();
  onCollected = (number) => {
    hasCollected();
    // One immediate at a time, however many are told of: of several, one knows the next, and code that never met that would fall back.
    if (told === 0) setImmediate(heard);
    told = Math.max(told, number);
  };
  const heard = () => {
    // What was registered later died of a collection that began later, too.
    if (told >= own) {
      onCollected = null;
      over = true;
      clearTimeout(timer);
      done();
      return;
    }
    told = 0;
    begin();
  };
  // Behind the end of this job: until then what was registered is in use.
  setImmediate(begin);
  wait(SILENT_MS);
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
  restless = false;
  startProfiler();
  const next = (left) => {
    if (left > 0) {
      round(() => next(left - 1));
      return;
    }
    setFlagsFromString("--flush-bytecode");
    profiler.stop();
    finishSweeping();
    // The next request goes on from here: from an immediate, which each of them needs, and no timer.
    setTimeout(() => setImmediate(done), SWEPT_MS);
  };
  next(rounds);
}

module.exports = { collectGarbage, withFlag };
