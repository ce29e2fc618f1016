"use strict";
/*
 * Ways of Node's own that are gone once before a freeze, so that no clone has to load and compile them, or finds optimised code that has never seen them.
 */
const { setImmediate, setTimeout, clearTimeout } = globalThis;

/** The first console.log loads half of net and stream, and compiles its way to the pipe: 1.5 ms of a first request. Writes nothing. */
function rehearseConsole() {
  for (const [stream, log] of [
    [process.stdout, console.log],
    [process.stderr, console.error],
  ]) {
    if (Object.hasOwn(stream, "write")) continue; // the function's own
    const { write } = stream;
    stream.write = (_chunk, ...rest) => write.call(stream, "", ...rest);
    try {
      for (const value of ["rehearsal", 1, { a: [1, "b"], c: null }, new Error("rehearsal")]) log("%s", value, value);
    } finally {
      delete stream.write;
    }
  }
}

/**
 * Preparing takes a timer and immediates of its own. What V8 has optimised in Node for a function's requests alone (one immediate each,
 * always the same) would fall back at that. `nextTurn` is how the runtime takes one.
 */
async function rehearseTimers(times, nextTurn) {
  for (let i = 0; i < times; i++) {
    clearTimeout(setTimeout(() => {}, 1));
    nextTurn(() => {});
  }
  await new Promise((resolve) => {
    setImmediate(resolve);
  });
}

module.exports = { rehearseConsole, rehearseTimers };
