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
 * - uuid-random, @lukeed/uuid/secure: 256 ahead;
 * - uuidv7, scru128: eight numbers of 32 bits;
 * - @fastify/session: 128 identifiers of sessions ahead, the first ones when it is loaded;
 * - id128: 4,000 bytes, of which each identifier takes what it needs;
 * - generate-password: 256 bytes, one for each letter;
 * - dd-trace: 8,192 identifiers of spans and traces ahead;
 * - base64id (engine.io and socket.io bring their own): 341 identifiers of sessions ahead, drawn asynchronously;
 * - Emscripten's /dev/urandom, as in @electric-sql/pglite: 1,024 bytes, for `gen_random_uuid()` among others;
 * - bson (mongodb, mongoose): five bytes for each process, in every ObjectId;
 * - ws, undici (and Node's own copy of it): thousands of masks for the frames of WebSocket clients.
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
  { name: "uuid-random", caller: /^(Object\.)?randomBytesBuffered$/, length: (length) => length % 4096 === 0 && length > 0 },
  { name: "@lukeed/uuid", caller: /^(Object\.)?v4$/, length: (length) => length === 4096 },
  ...["uuidv7", "scru128"].map((name) => ({
    name,
    caller: /^BufferedCryptoRandom\.nextUint32$/,
    // As many bytes as many a key has, which few draw as words.
    length: (length, bytes) => length === 32 && bytes?.BYTES_PER_ELEMENT === 4,
  })),
  // A bundle has the function that loads a module named by its file.
  { name: "@fastify/session", caller: /\bidGenerator(\.js)?$/, length: (length) => length === 3072 },
  { name: "id128", caller: /^(Object\.)?randomBytes$/, length: (length) => length === 4000 },
  { name: "generate-password", caller: /^(Object\.)?getNextRandomValue$/, length: (length) => length === 256 },
  { name: "dd-trace", caller: /^pseudoRandom$/, length: (length) => length === 65_536 },
  ...["base64id", "engine.io", "socket.io"].map((name) => ({
    name,
    caller: /^Base64Id\.getRandomBytes$/,
    length: (length) => length === 4096,
  })),
  { name: "@electric-sql/pglite", caller: /^(Object\.)?randomByte$/, length: (length) => length === 1024 },
  { name: "ws", caller: /^(Function|Sender)\.frame$/, length: (length) => length === 8192 },
  { name: "undici", caller: /^generateMask$/, length: (length) => length === 8192 || length === 16386 },
];
/** From the drawing: in the library itself, or behind one helper of its own. */
const FRAMES = 3;
const KEPT_MAX = 256;

/** Views of what is kept, held weakly. */
let kept = [];
/** How often all was renewed: what was drawn before, and is handed over after, is stale. */
let renewals = 0;

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

/** `bytes` are not there yet where they are drawn while the program goes on. */
function isKnown(length, below, bytes) {
  const possible = LIBRARIES.filter((library) => library.length(length, bytes));
  if (possible.length === 0) return false;
  return callers(below).some((site) => {
    const file = site.getFileName() ?? "";
    return possible.some(({ name, caller }) => file.includes(`/node_modules/${name}/`) || caller.test(nameOf(site)));
  });
}

/** `bytes` were drawn by whoever called `below`. */
function drawn(bytes, below) {
  if (isKnown(bytes.byteLength, below, bytes)) keep(bytes);
}

function keep(bytes) {
  const { buffer, byteOffset } = bytes;
  kept = kept.filter((ref) => {
    const other = ref.deref();
    return other !== undefined && !(other.buffer === buffer && other.byteOffset === byteOffset);
  });
  if (kept.length < KEPT_MAX) kept.push(new WeakRef(bytes));
}

/** `callback` for bytes that are drawn while the program goes on, which may be frozen before it has them. */
function handingOver(callback) {
  const asked = renewals;
  return function (error, bytes) {
    if (isBytes(bytes)) {
      if (asked !== renewals) randomFillSync(bytes);
      keep(bytes);
    }
    return callback.call(this, error, bytes);
  };
}

/** Once, before the user's code. */
function install() {
  const { randomBytes } = crypto;
  const own = {
    randomFillSync(buffer, offset = undefined, size = undefined) {
      const filled = randomFillSync(buffer, offset, size);
      const whole = (offset === undefined || offset === 0) && (size === undefined || size === buffer.length);
      if (whole && isBytes(buffer)) drawn(buffer, own.randomFillSync);
      return filled;
    },
    randomBytes(size, callback) {
      if (typeof callback === "function" && isKnown(size, own.randomBytes)) return randomBytes(size, handingOver(callback));
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
  renewals++;
  for (const ref of kept) {
    const bytes = ref.deref();
    if (bytes !== undefined) randomFillSync(bytes);
  }
}

module.exports = { install, renew };
