"use strict";
/* The second argument of a handler. */

let logGroupName;
let logStreamName;
let memoryMb;
let memoryText;

/** Once, before the function's code can change them. */
function readEnvironment() {
  logGroupName = process.env.AWS_LAMBDA_LOG_GROUP_NAME;
  logStreamName = process.env.AWS_LAMBDA_LOG_STREAM_NAME;
}

/** The same for all requests, and so made once: V8 notes each number that it turns into text, in pages that every clone would then have copies of. */
function memoryAsText(mb) {
  if (mb !== memoryMb) {
    memoryMb = mb;
    memoryText = String(mb);
  }
  return memoryText;
}

/** `X-Amz-Client-Context` as an object; a text that is not JSON is handed on as it is. */
function clientContextOf(text) {
  if (typeof text !== "string") return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

class Context {
  #deadlineMs;

  constructor(header, finish) {
    this.#deadlineMs = header.deadlineMs;
    this.callbackWaitsForEmptyEventLoop = true;
    this.functionName = header.functionName;
    this.functionVersion = header.functionVersion;
    this.memoryLimitInMB = memoryAsText(header.memoryMb);
    this.logGroupName = logGroupName;
    this.logStreamName = logStreamName;
    this.clientContext = clientContextOf(header.clientContext);
    this.identity = undefined;
    this.invokedFunctionArn = header.invokedArn;
    this.awsRequestId = header.requestId;
    // Not written straight into the members: functions that are V8 makes old from the beginning, and each request would leave three to the next full collection.
    const getRemainingTimeInMillis = () => this.#deadlineMs - Date.now();
    const succeed = (value) => finish(null, value);
    const fail = (error) => finish(error ?? "handled");
    this.getRemainingTimeInMillis = getRemainingTimeInMillis;
    this.done = finish;
    this.succeed = succeed;
    this.fail = fail;
  }
}

module.exports = { Context, readEnvironment };
