"use strict";
/*
 * `awslambda.streamifyResponse`, buffered: what the handler writes is collected, and is the answer when the stream ends.
 * `HttpResponseStream.from` puts a JSON prelude and eight NUL bytes before the body.
 */
const { Writable } = require("node:stream");
const { runtimeError } = require("./errors.cjs");

const STREAMING = Symbol.for("aws.lambda.runtime.handler.streaming");
const HTTP_INTEGRATION = "application/vnd.awslambda.http-integration-response";

/** Marks a handler as one that answers through a stream. */
function streamifyResponse(handler, options) {
  if (typeof handler !== "function") throw new TypeError(`streamifyResponse needs a function, not ${typeof handler}`);
  handler[STREAMING] = options?.highWaterMark ?? true;
  return handler;
}

const CONTENT_TYPE_CHARACTERS_MAX = 256;

class ResponseStream extends Writable {
  #chunks = [];
  #contentType;
  #prelude;

  setContentType(contentType) {
    if (typeof contentType !== "string" || contentType.length > CONTENT_TYPE_CHARACTERS_MAX) {
      throw new TypeError(`a content type is a text of at most ${CONTENT_TYPE_CHARACTERS_MAX} characters`);
    }
    this.#contentType = contentType;
  }

  get contentType() {
    return this.#contentType;
  }

  /** Puts `bytes` before everything that is written later. Until then another call replaces them, such as that of an error handler. */
  openWith(bytes) {
    if (this.#chunks.length > 0) throw new Error("HttpResponseStream.from must come before the first write");
    this.#prelude = bytes;
  }

  /** What is neither text nor bytes is written as JSON, as in Lambda. */
  write(chunk, ...rest) {
    const isPlain = typeof chunk === "string" || ArrayBuffer.isView(chunk) || chunk === null || chunk === undefined;
    return super.write(isPlain ? chunk : JSON.stringify(chunk), ...rest);
  }

  /** Copies: the handler may use its buffer again as soon as it is told that it was written. */
  _write(chunk, encoding, done) {
    this.#chunks.push(Buffer.from(chunk, encoding));
    done();
  }

  body() {
    return Buffer.concat(this.#prelude === undefined ? this.#chunks : [this.#prelude, ...this.#chunks]);
  }
}

const HttpResponseStream = {
  from(stream, metadata) {
    stream.setContentType(HTTP_INTEGRATION);
    stream.openWith(Buffer.concat([Buffer.from(JSON.stringify(metadata), "utf8"), Buffer.alloc(8)]));
    return stream;
  },
};

/**
 * Runs a streaming handler. Resolves with the stream once the handler has returned and the stream has ended. When nothing is left to run,
 * `request.onIdle` ends the stream of a handler that returned, and goes on without one that ended its stream and never returned.
 */
async function callStreaming(handler, event, context, request) {
  const stream = new ResponseStream();
  const ended = new Promise((resolve, reject) => {
    stream.once("finish", resolve);
    stream.once("error", reject);
    stream.once("close", () => reject(new Error("the response stream was destroyed before it ended")));
  });
  ended.catch(() => {});
  let returned = false;
  const idle = new Promise((resolve, reject) => {
    request.onIdle = () => {
      if (returned) stream.end();
      else if (stream.writableEnded || stream.destroyed) resolve();
      else reject(runtimeError("NodeJsExit", "the event loop ran empty, but the handler neither returned nor ended its stream"));
    };
  });
  await Promise.race([handler(event, stream, context), idle]);
  returned = true;
  await ended;
  return stream;
}

module.exports = { streamifyResponse, HttpResponseStream, callStreaming };
