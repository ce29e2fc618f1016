"use strict";
/*
 * How every thread of the process learns that it has become another one: some words in memory that worker threads share. The
 * first changes with each renewal; behind it lies the server's entropy of the last one.
 *
 * A thaw lets all threads go at once, and the main one renews when it has read its request. What a worker draws in between must
 * differ, too: where there are workers, the image notes where in memory the words lie (`seeds`), and each thaw fills them with
 * random bytes before any thread runs, which workers take for a renewal.
 */
const { closeSync, openSync, readFileSync, readSync } = require("node:fs");
const { randomFillSync } = require("node:crypto");
const { getEnvironmentData, isMainThread, setEnvironmentData } = require("node:worker_threads");

/** Indices of words. */
const MARK = 0;
const ENTROPY = 1;
const ENTROPY_WORDS = 8;
const WORKERS = ENTROPY + ENTROPY_WORDS;
const FILLED_BYTES = WORKERS * 4;

/** By this name workers get the words of whoever made them. */
const NAME = "thaw.renewal";
const shared = getEnvironmentData(NAME);
const words = new Int32Array(shared instanceof SharedArrayBuffer ? shared : new SharedArrayBuffer((WORKERS + 1) * 4));
const entropyBytes = Buffer.from(words.buffer, ENTROPY * 4, ENTROPY_WORDS * 4);
if (isMainThread) setEnvironmentData(NAME, words.buffer);
else Atomics.add(words, WORKERS, 1);

/** The process has become another one: `entropy`, in hexadecimal digits, came with that. */
function changed(entropy) {
  entropyBytes.write(entropy, "hex");
  Atomics.add(words, MARK, 1);
  // Workers alone wait for it. To look for whom to wake is two pages that a clone writes.
  if (Atomics.load(words, WORKERS) > 0) Atomics.notify(words, MARK);
}

const PIECE_BYTES = 1 << 18;
const SEARCHED_BYTES_MAX = 256 << 20;
let address;

/** Ranges of memory in which the C library's heap may be: private, writable, of no file. */
function* heaps() {
  for (const line of readFileSync("/proc/self/maps", "latin1").split("\n")) {
    const found = /^([0-9a-f]+)-([0-9a-f]+) rw.p \S+ 00:00 0 *(\[heap\])?$/.exec(line);
    if (found !== null) yield [Number.parseInt(found[1], 16), Number.parseInt(found[2], 16), found[3] !== undefined];
  }
}

/** Where the words lie, found by what is in them; 0 where it is not found, or memory cannot be read. */
function find() {
  let memory;
  try {
    memory = openSync("/proc/self/mem", "r");
  } catch {
    return 0;
  }
  try {
    const piece = Buffer.allocUnsafeSlow(PIECE_BYTES + entropyBytes.length);
    const seen = Buffer.allocUnsafeSlow(entropyBytes.length);
    /** Copies of what is looked for lie about, this program's own among them: only the words themselves change with the words. */
    const isThem = (at) => {
      randomFillSync(entropyBytes);
      const same = readSync(memory, seen, 0, seen.length, at) === seen.length && entropyBytes.equals(seen);
      wanted.copy(entropyBytes);
      return same;
    };
    randomFillSync(entropyBytes);
    const wanted = Buffer.from(entropyBytes);
    let left = SEARCHED_BYTES_MAX;
    for (const [begin, end] of [...heaps()].sort((a, b) => Number(b[2]) - Number(a[2]))) {
      for (let at = begin; at < end && left > 0; at += PIECE_BYTES, left -= PIECE_BYTES) {
        const bytes = readSync(memory, piece, 0, Math.min(piece.length, end - at), at);
        const read = piece.subarray(0, bytes);
        for (let hit = read.indexOf(wanted); hit !== -1; hit = read.indexOf(wanted, hit + 1)) {
          if (isThem(at + hit)) return at + hit - ENTROPY * 4;
        }
      }
    }
    return 0;
  } catch {
    return 0;
  } finally {
    closeSync(memory);
  }
}

/** Before a freeze, if there are workers that could draw before the renewal: address and bytes of what a thaw fills. */
function seeds() {
  if (Atomics.load(words, WORKERS) === 0) return [];
  address ??= find();
  return address === 0 ? [] : [[address, FILLED_BYTES]];
}

module.exports = { MARK, ENTROPY, ENTROPY_WORDS, words, changed, seeds };
