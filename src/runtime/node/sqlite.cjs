"use strict";
/*
 * Random values of SQLite (`random()`, `randomblob()`) in `better-sqlite3` and `libsql`. A library of SQLite has one generator for the process, which clones
 * would go on with from the same state. It is seeded anew when a file is opened under another process id; so after each thaw one is opened that is none.
 */
const { _cache } = require("node:module");

/** The modules that open databases; what they load beside them is the library itself. */
const DATABASE = /\/(better-sqlite3(-multiple-ciphers)?\/lib\/database|libsql\/index)\.js$/;
const LIBRARY = /\/(better_sqlite3|@libsql\/[^/]+\/index)\.node$/;

/** Their classes. */
let databases = [];

/** Before a freeze. To look for them after a thaw would touch what is kept of each module. */
function remember() {
  const loaded = Object.keys(_cache);
  const used = loaded.some((path) => LIBRARY.test(path));
  databases = used ? loaded.filter((path) => DATABASE.test(path)).map((path) => _cache[path].exports) : [];
}

/** After each thaw. */
function renew() {
  for (const Database of databases) {
    try {
      new Database("/tmp");
    } catch {
      // A directory is none of its files; it has looked at the process id before that.
    }
  }
}

module.exports = { remember, renew };
