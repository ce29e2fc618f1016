"use strict";
/* The second argument of a handler. */

let logGroupName;
let logStreamName;

/** Once, before the function's code can change them. */
function readEnvironment() {
  logGroupName = process.env.AWS_LAMBDA_LOG_GROUP_NAME;
  logStreamName = process.env.AWS_LAMBDA_LOG_STREAM_NAME;
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
    this.memoryLimitInMB = String(header.memoryMb);
    this.logGroupName = logGroupName;
    this.logStreamName = logStreamName;
    this.clientContext = clientContextOf(header.clientContext);
    this.identity = undefined;
    this.invokedFunctionArn = header.invokedArn;
    this.awsRequestId = header.requestId;
    this.getRemainingTimeInMillis = () => this.#deadlineMs - Date.now();
    this.done = finish;
    this.succeed = (value) => finish(null, value);
    this.fail = (error) => finish(error ?? "handled");
  }
}

module.exports = { Context, readEnvironment };
