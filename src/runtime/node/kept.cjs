"use strict";
/*
 * Random bytes that libraries keep, and hand out later: every clone of an image would hand out the same ones. `install` watches who draws, before the
 * user's code is loaded; `renew` fills what is still kept anew, in place, after each thaw.
 *
 * Only libraries that are known, by where they lie or, in a bundle, by the name of the function that draws: of other bytes nobody can tell whether they are
 * a stock or a key, which must stay what it is. Known are:
 *
 * - nanoid: 128 identifiers ahead;
 * - uuid (up to 8 for every version-4 identifier, later where it takes its own generator): 16 ahead;
 * - bson (mongodb, mongoose): five bytes for each process, in every ObjectId.
 *
 * A stack is looked at only for drawings of such lengths: nanoid draws once in 128 identifiers, uuid once in 16, bson once.
 */
const crypto = require("node:crypto");

const { randomFillSync } = crypto;
const isBytes = ArrayBuffer.isView;

const LIBRARIES = [
  { name: "nanoid", caller: /^(Object\.)?fillPool$/, length: (length) => length % 128 === 0 && length > 0 },
  { name: "uuid", caller: /^(Object\.)?rng$/, length: (length) => length === 256 },
  { name: "bson", caller: /^(ObjectId|ObjectID|Function)\.generate$/, length: (length) => length === 5 },
];
/** From the drawing: in the library itself, or behind one helper of its own. */
const FRAMES = 3;
const KEPT_MAX = 256;

/** Views of what is kept, held weakly. */
let kept = [];

/** Name of the caller as V8 prints it, without where it is. */
function nameOf(site) {
  const text = site.toString();
  const end = text.indexOf(" (");
  return end === -1 ? "" : text.slice(text.startsWith("async ") ? 6 : 0, end);
}

/** The nearest callers of `below`. Nothing of the user's runs meanwhile, whatever was made of Error. */
function callers(below) {
  const { prepareStackTrace, stackTraceLimit } = Error;
  try {
    Error.prepareStackTrace = (_, sites) => sites;
    Error.stackTraceLimit = FRAMES;
    const holder = {};
    Error.captureStackTrace(holder, below);
    return Array.isArray(holder.stack) ? holder.stack : [];
  } catch {
    return []; // a frozen Error
  } finally {
    try {
      Error.prepareStackTrace = prepareStackTrace;
      Error.stackTraceLimit = stackTraceLimit;
    } catch {
      // as above
    }
  }
}

function isKnown(length, below) {
  const possible = LIBRARIES.filter((library) => library.length(length));
  if (possible.length === 0) return false;
  return callers(below).some((site) => {
    const file = site.getFileName() ?? "";
    return possible.some(({ name, caller }) => file.includes(`/node_modules/${name}/`) || caller.test(nameOf(site)));
  });
}

/** `bytes` were drawn by whoever called `below`. */
function drawn(bytes, below) {
  const { buffer, byteOffset, byteLength } = bytes;
  if (!isKnown(byteLength, below)) return;
  kept = kept.filter((ref) => {
    const other = ref.deref();
    return other !== undefined && !(other.buffer === buffer && other.byteOffset === byteOffset);
  });
  if (kept.length < KEPT_MAX) kept.push(new WeakRef(bytes));
}

/** Once, before the user's code. */
function install() {
  const { randomBytes } = crypto;
  const own = {
    randomFillSync(buffer, offset = undefined, size = undefined) {
      const filled = randomFillSync(buffer, offset, size);
      if (offset === undefined && isBytes(buffer)) drawn(buffer, own.randomFillSync);
      return filled;
    },
    randomBytes(size, callback) {
      const bytes = randomBytes(size, callback);
      if (callback === undefined) drawn(bytes, own.randomBytes);
      return bytes;
    },
  };
  crypto.randomFillSync = own.randomFillSync;
  crypto.randomBytes = own.randomBytes;

  const prototype = Object.getPrototypeOf(crypto.webcrypto);
  const { getRandomValues } = prototype;
  prototype.getRandomValues = {
    getRandomValues(array) {
      const filled = getRandomValues.call(this, array); // throws what Node throws
      drawn(filled, prototype.getRandomValues);
      return filled;
    },
  }.getRandomValues;
}

/** After each thaw. */
function renew() {
  for (const ref of kept) {
    const bytes = ref.deref();
    if (bytes !== undefined) randomFillSync(bytes);
  }
}

module.exports = { install, renew };
