"use strict";
/*
 * Frames on descriptor 3: u32 magic | u32 headerBytes | u32 bodyBytes | header (JSON) | body, little-endian.
 *
 * Reads and writes are blocking system calls on the main thread. Nothing of the function can run while it waits
 * for a request, and the descriptor belongs to no event loop: a frozen function is one thread in read(2).
 * Both buffers are allocated once, and a frame that fits costs one read and one write.
 *
 * V8 writes to each function that it runs, so that every clone has copies of the pages in which they lie: `readvSync` runs five of Node's
 * where `readSync` runs nine, and text and numbers go without any. All are taken before the user's code can replace them.
 */
const { readvSync, writevSync } = require("node:fs");
const { parse, stringify } = JSON;
/** As `header.text = …`, for headers of any shape: V8 optimises this for requests, and what prepares or thaws must not undo that. */
const { set } = Reflect;
const free = (method) => Function.prototype.call.bind(method);
const readText = free(Buffer.prototype.utf8Slice);
const writeText = free(Buffer.prototype.utf8Write);
const part = free(Uint8Array.prototype.subarray);
const place = free(Uint8Array.prototype.set);

const FD = 3;
const MAGIC = 0x57414854;
const PREFIX_BYTES = 12;
const HEADER_BYTES_MAX = 64 * 1024;
/** Much longer than the server takes. */
const CLOSED_MS = 10_000;

const inbox = new Uint8Array(PREFIX_BYTES + HEADER_BYTES_MAX);
const outbox = new Uint8Array(PREFIX_BYTES + HEADER_BYTES_MAX);
/** Their first words; this machine is little-endian, too. */
const inboxWords = new Uint32Array(inbox.buffer, 0, PREFIX_BYTES / 4);
const outboxWords = new Uint32Array(outbox.buffer, 0, PREFIX_BYTES / 4);
const clockless = new Int32Array(new SharedArrayBuffer(4));
let filled = 0;
let slowWarned = false;

/** The server's end is gone: there is nobody left to answer. */
class ServerGone extends Error {}

/** Called when the descriptor turned out not to block, which only the function itself can have caused. */
function pause() {
  if (!slowWarned) {
    slowWarned = true;
    logLine("thaw: descriptor 3 was made non-blocking; requests are now polled for every millisecond");
  }
  Atomics.wait(clockless, 0, 0, 1);
}

/**
 * Most likely the function has closed the descriptor, or put something else in its place. The server, which sees its end, tells it so after a second, and ends it: a
 * process that ended by itself before would be told that it must not exit. Whatever else it was is thrown then.
 */
function awaitTheEnd() {
  Atomics.wait(clockless, 0, 0, CLOSED_MS);
}

/** As much as there is, up to the end of `buffer`. */
function readSome(buffer, offset) {
  for (;;) {
    try {
      const count = readvSync(FD, [part(buffer, offset)]);
      if (count === 0) throw new ServerGone("the server closed the control socket");
      return count;
    } catch (error) {
      if (error.code === "EAGAIN") pause();
      else if (error.code === "ECONNRESET") throw new ServerGone("the server closed the control socket");
      else {
        if (!(error instanceof ServerGone)) awaitTheEnd();
        throw error;
      }
    }
  }
}

function writeAll(fd, buffer, offset, end) {
  while (offset < end) {
    try {
      offset += writevSync(fd, [part(buffer, offset, end)]);
    } catch (error) {
      if (error.code === "EAGAIN") pause();
      else if (error.code === "EPIPE" || error.code === "ECONNRESET")
        throw new ServerGone("the server closed the control socket");
      else {
        if (fd === FD) awaitTheEnd();
        throw error;
      }
    }
  }
}

function fill(wanted) {
  while (filled < wanted) filled += readSome(inbox, filled);
}

/** Blocks until a whole frame is there. Returns its header; the body is left in `header.text`. */
function receive() {
  fill(PREFIX_BYTES);
  const magic = inboxWords[0];
  const headerBytes = inboxWords[1];
  const bodyBytes = inboxWords[2];
  if (magic !== MAGIC || headerBytes > HEADER_BYTES_MAX) throw new Error("the server sent something that is not a frame");
  const bodyAt = PREFIX_BYTES + headerBytes;
  const end = bodyAt + bodyBytes;
  fill(bodyAt);
  const header = parse(readText(inbox, PREFIX_BYTES, bodyAt));
  if (end <= inbox.length) {
    fill(end);
    set(header, "text", readText(inbox, bodyAt, end));
    if (filled > end) inbox.copyWithin(0, end, filled);
    filled -= end;
    return header;
  }
  const body = Buffer.allocUnsafeSlow(bodyBytes);
  place(body, part(inbox, bodyAt, filled));
  let at = filled - bodyAt;
  filled = 0;
  while (at < bodyBytes) at += readSome(body, at);
  set(header, "text", readText(body, 0, bodyBytes));
  return header;
}

function prefix(headerBytes, bodyBytes) {
  outboxWords[0] = MAGIC;
  outboxWords[1] = headerBytes;
  outboxWords[2] = bodyBytes;
}

/** Writes one frame. `body` is a string or a Buffer. `rehearsal` builds it and writes nothing. */
function send(header, body, rehearsal) {
  const json = stringify(header);
  const isText = typeof body === "string";
  const bytesMax = PREFIX_BYTES + json.length * 3 + (isText ? body.length * 3 : body.length);
  if (bytesMax <= outbox.length) {
    const headerBytes = writeText(outbox, json, PREFIX_BYTES);
    const bodyAt = PREFIX_BYTES + headerBytes;
    let bodyBytes = body.length;
    if (isText) bodyBytes = writeText(outbox, body, bodyAt);
    else place(outbox, body, bodyAt);
    prefix(headerBytes, bodyBytes);
    writeAll(FD, outbox, 0, rehearsal ? 0 : bodyAt + bodyBytes);
    return;
  }
  const bytes = isText ? Buffer.from(body, "utf8") : body;
  const headerBytes = writeText(outbox, json, PREFIX_BYTES);
  prefix(headerBytes, bytes.length);
  writeAll(FD, outbox, 0, PREFIX_BYTES + headerBytes);
  writeAll(FD, bytes, 0, bytes.length);
}

/** One line to the function's log, whatever became of `console` and `process.stderr`. */
function logLine(text) {
  const bytes = Buffer.from(`${text}\n`, "utf8");
  try {
    writeAll(2, bytes, 0, bytes.length);
  } catch {
    // The log's reader is gone; the reply matters more.
  }
}

module.exports = { receive, send, logLine, ServerGone };
