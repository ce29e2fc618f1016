"use strict";
/*
 * Snapshot hooks. Before-hooks run last in, first out; after-hooks first in, first out. Both may be async.
 * `v8.startupSnapshot.addSerializeCallback` and `addDeserializeCallback` are the same two lists; Node itself refuses
 * them outside of its own snapshots. `isBuildingSnapshot()` stays false: this is no Node snapshot.
 */
const { startupSnapshot } = require("node:v8");

const before = [];
const after = [];

function register(list, hook, args) {
  if (typeof hook !== "function") throw new TypeError(`a snapshot hook must be a function, not ${typeof hook}`);
  list.push(args.length === 0 ? hook : () => hook(...args));
  return hook;
}

const snapshot = Object.freeze({
  /** Runs `hook(...args)` before the function is frozen. */
  registerBeforeSnapshot: (hook, ...args) => register(before, hook, args),
  /** Runs `hook(...args)` after each thaw, before the handler sees the request. */
  registerAfterRestore: (hook, ...args) => register(after, hook, args),
});

startupSnapshot.addSerializeCallback = (hook, data) => void register(before, hook, [data]);
startupSnapshot.addDeserializeCallback = (hook, data) => void register(after, hook, [data]);

async function runBefore() {
  for (const hook of before.slice().reverse()) await hook();
}

/** Nothing to wait for, and so no promise, when there are no hooks, or in a rehearsal. */
function runAfter(rehearsing) {
  return rehearsing || after.length === 0 ? undefined : runAfterAll();
}

async function runAfterAll() {
  for (const hook of after.slice()) await hook();
}

module.exports = { snapshot, runBefore, runAfter };
