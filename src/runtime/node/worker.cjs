"use strict";
/*
 * Loaded ahead of everything in each thread: a worker must not share with other clones what the main thread must not (unique.cjs),
 * and is told of processor time what that is told (spent.cjs).
 * What is not to be had in workers Node marks so; to ask node:worker_threads would load half of `stream` into every main thread.
 */
if (process.abort.disabled === true) {
  require("./spent.cjs").install();
  require("./unique.cjs").installInWorker();
}
