"use strict";
/*
 * Must be loaded first. Heap limits on the command line change V8's hash of its flags, and with another hash V8 refuses the
 * code cache that Node carries for its own modules: `crypto` then takes 11 ms to load instead of 3, `http` 7 instead of 2.
 * V8 reads them once, when the heap is made, so afterwards the flags can be put back to their defaults and the cache
 * is good again; `v8.getHeapStatistics().heap_size_limit` stays. (Heaps of workers made later have V8's own default.)
 *
 * `require("v8")` loads half of `stream` before the flag could be put back, hence the binding; it prints a deprecation.
 */
function setFlag(flag) {
  const silent = process.noDeprecation;
  process.noDeprecation = true;
  try {
    process.binding("v8").setFlagsFromString(flag);
  } catch {
    // A Node without that binding: the same call, found the slower way.
    require("node:v8").setFlagsFromString(flag);
  } finally {
    process.noDeprecation = silent;
  }
}

// 0 is the default of both: "decide yourself".
setFlag("--max-old-space-size=0");
setFlag("--max-semi-space-size=0");
