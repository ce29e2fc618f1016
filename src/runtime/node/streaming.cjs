"use strict";
/*
 * `awslambda.streamifyResponse`, buffered: what the handler writes is collected, and is the answer when the stream ends.
 * `HttpResponseStream.from` puts a JSON prelude and eight NUL bytes before the body.
 */
const { Writable } = require("node:stream");

const STREAMING = Symbol.for("aws.lambda.runtime.handler.streaming");
const HTTP_INTEGRATION = "application/vnd.awslambda.http-integration-response";

/** Marks a handler as one that answers through a stream. */
function streamifyResponse(handler, options) {
  if (typeof handler !== "function") throw new TypeError(`streamifyResponse needs a function, not ${typeof handler}`);
  handler[STREAMING] = options?.highWaterMark ?? true;
  return handler;
}

class ResponseStream extends Writable {
  #chunks = [];
  #contentType;
  #prelude = false;

  setContentType(contentType) {
    this.#contentType = contentType;
  }

  get contentType() {
    return this.#contentType;
  }

  /** Puts `bytes` before everything that is written later. */
  openWith(bytes) {
    if (this.#prelude || this.#chunks.length > 0) throw new Error("HttpResponseStream.from must come before the first write");
    this.#prelude = true;
    this.#chunks.push(bytes);
  }

  _write(chunk, encoding, done) {
    this.#chunks.push(typeof chunk === "string" ? Buffer.from(chunk, encoding) : chunk);
    done();
  }

  body() {
    return Buffer.concat(this.#chunks);
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
 * Runs a streaming handler. Resolves with the stream once the handler has returned and the stream has ended;
 * `request.onIdle` ends it when nothing is left that could.
 */
async function callStreaming(handler, event, context, request) {
  const stream = new ResponseStream();
  request.onIdle = () => stream.end();
  const ended = new Promise((resolve, reject) => {
    stream.once("finish", resolve);
    stream.once("error", reject);
  });
  ended.catch(() => {});
  await handler(event, stream, context);
  await ended;
  return stream;
}

module.exports = { streamifyResponse, HttpResponseStream, callStreaming };
