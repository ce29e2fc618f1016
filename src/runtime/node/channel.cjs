"use strict";
/*
 * Frames on descriptor 3: u32 magic | u32 headerBytes | u32 bodyBytes | header (JSON) | body, little-endian.
 *
 * Reads and writes are blocking system calls on the main thread. Nothing of the function can run while it waits
 * for a request, and the descriptor belongs to no event loop: a frozen function is one thread in read(2).
 * Both buffers are allocated once, and a frame that fits costs one read and one write.
 * The system calls are taken from `fs` before the user's code can replace them.
 */
const { readSync, writeSync } = require("node:fs");
const { parse, stringify } = JSON;
/** As `header.text = …`, for headers of any shape: V8 optimises this for requests, and what prepares or thaws must not undo that. */
const { set } = Reflect;

const FD = 3;
const MAGIC = 0x57414854;
const PREFIX_BYTES = 12;
const HEADER_BYTES_MAX = 64 * 1024;

const inbox = Buffer.allocUnsafeSlow(PREFIX_BYTES + HEADER_BYTES_MAX);
const outbox = Buffer.allocUnsafeSlow(PREFIX_BYTES + HEADER_BYTES_MAX);
const clockless = new Int32Array(new SharedArrayBuffer(4));
let filled = 0;
let slowWarned = false;

/** The server's end is gone: there is nobody left to answer. */
class ServerGone extends Error {}

/** Called when the descriptor turned out not to block, which only the function itself can have caused. */
function pause() {
  if (!slowWarned) {
    slowWarned = true;
    writeSync(2, "thaw: descriptor 3 was made non-blocking; requests are now polled for every millisecond\n");
  }
  Atomics.wait(clockless, 0, 0, 1);
}

function readSome(buffer, offset, length) {
  for (;;) {
    try {
      const count = readSync(FD, buffer, offset, length, null);
      if (count === 0) throw new ServerGone("the server closed the control socket");
      return count;
    } catch (error) {
      if (error.code === "EAGAIN") pause();
      else if (error.code === "ECONNRESET") throw new ServerGone("the server closed the control socket");
      else throw error;
    }
  }
}

function writeAll(fd, buffer, offset, end) {
  while (offset < end) {
    try {
      offset += writeSync(fd, buffer, offset, end - offset, null);
    } catch (error) {
      if (error.code === "EAGAIN") pause();
      else if (error.code === "EPIPE" || error.code === "ECONNRESET")
        throw new ServerGone("the server closed the control socket");
      else throw error;
    }
  }
}

function fill(wanted) {
  while (filled < wanted) filled += readSome(inbox, filled, inbox.length - filled);
}

/** Blocks until a whole frame is there. Returns its header; the body is left in `header.text`. */
function receive() {
  fill(PREFIX_BYTES);
  const magic = inbox.readUInt32LE(0);
  const headerBytes = inbox.readUInt32LE(4);
  const bodyBytes = inbox.readUInt32LE(8);
  if (magic !== MAGIC || headerBytes > HEADER_BYTES_MAX) throw new Error("the server sent something that is not a frame");
  const bodyAt = PREFIX_BYTES + headerBytes;
  const end = bodyAt + bodyBytes;
  fill(bodyAt);
  const header = parse(inbox.toString("utf8", PREFIX_BYTES, bodyAt));
  if (end <= inbox.length) {
    fill(end);
    set(header, "text", inbox.toString("utf8", bodyAt, end));
    if (filled > end) inbox.copyWithin(0, end, filled);
    filled -= end;
    return header;
  }
  const body = Buffer.allocUnsafeSlow(bodyBytes);
  let at = inbox.copy(body, 0, bodyAt, filled);
  filled = 0;
  while (at < bodyBytes) at += readSome(body, at, bodyBytes - at);
  set(header, "text", body.toString("utf8"));
  return header;
}

/** Writes one frame. `body` is a string or a Buffer. `rehearsal` builds it and writes nothing. */
function send(header, body, rehearsal) {
  const json = stringify(header);
  const isText = typeof body === "string";
  const bytesMax = PREFIX_BYTES + json.length * 3 + (isText ? body.length * 3 : body.length);
  if (bytesMax <= outbox.length) {
    const headerBytes = outbox.write(json, PREFIX_BYTES, "utf8");
    const bodyAt = PREFIX_BYTES + headerBytes;
    const bodyBytes = isText ? outbox.write(body, bodyAt, "utf8") : body.copy(outbox, bodyAt);
    outbox.writeUInt32LE(MAGIC, 0);
    outbox.writeUInt32LE(headerBytes, 4);
    outbox.writeUInt32LE(bodyBytes, 8);
    writeAll(FD, outbox, 0, rehearsal ? 0 : bodyAt + bodyBytes);
    return;
  }
  const bytes = isText ? Buffer.from(body, "utf8") : body;
  const headerBytes = outbox.write(json, PREFIX_BYTES, "utf8");
  outbox.writeUInt32LE(MAGIC, 0);
  outbox.writeUInt32LE(headerBytes, 4);
  outbox.writeUInt32LE(bytes.length, 8);
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
