"use strict";
/* The door through which functions reach the hooks: `require("thaw-snapshot")` or `import … from "thaw-snapshot"`. */
const snapshot = globalThis.awslambda?.snapshot;
if (snapshot === undefined) throw new Error("thaw-snapshot works only inside a function that thaw runs");

exports.registerBeforeSnapshot = snapshot.registerBeforeSnapshot;
exports.registerAfterRestore = snapshot.registerAfterRestore;
