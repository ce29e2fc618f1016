"use strict";
/*
 * The program that runs a Node function.
 *
 *   boot ──▶ install what must be unique ──▶ load the handler ──▶ ready
 *                                                                   │
 *   ┌──────────── serve: blocked in read(3), nothing else runs ◀────┤
 *   ├─ prepare: before-hooks, rehearse, measure the code's heat, collect garbage, "prepared", and back without leaving the macrotask
 *   └─ invoke:  renew and after-hooks when thawed, handler, answer, then one turn of the event loop
 *
 * Started with THAW_BASE in its environment it loads nothing: it parks, is frozen as the base of many images, and a clone of it
 * then takes the environment and the handler of its function from a `load` frame (docs/design/base-images.md).
 *
 * `serve` is always a macrotask of its own, so no microtask of the function is pending while it blocks. One request is open
 * at a time (`open`); whoever settles it first answers, and what comes later is ignored. `onIdle` says what an empty event
 * loop means at that point. Everything on the way of a request, of an error and of a thaw is loaded and has run once before
 * `prepared`, so that a thawed function need not read or compile anything of ours; a boot does not pay for it.
 */
require("./flags.cjs");
const { AsyncResource } = require("node:async_hooks");
const spent = require("./spent.cjs");
const unique = require("./unique.cjs");
const renewal = require("./renewal.cjs");
const { receive, send, logLine, ServerGone } = require("./channel.cjs");
const { runtimeError, describe, inFull, textOf } = require("./errors.cjs");
const { snapshot, runBefore, runAfter } = require("./hooks.cjs");
const { Context, readEnvironment } = require("./context.cjs");
const { loadHandler, loaded } = require("./handler.cjs");
const { collectGarbage } = require("./collector.cjs");
const { codeHeat } = require("./heat.cjs");
const { rehearseConsole, rehearseTimers } = require("./rehearsal.cjs");

const { parse, stringify } = JSON;
const { log } = console;
const { setImmediate } = globalThis;
/** As `object.name`, but optimised code that has met other shapes only does not fall back. */
const { get } = Reflect;
const { env } = process;
const exit = process.exit.bind(process);
const now = performance.now.bind(performance);
const resourceUsage = process.resourceUsage.bind(process);
const WeakReference = WeakRef;

const STREAMING = Symbol.for("aws.lambda.runtime.handler.streaming");
/** Lambda's limit on a reply: 6 MiB and a little. */
const REPLY_BYTES_MAX = 6_291_556;
/**
 * Collections when preparing. On a heap of 45 MB that had become garbage the first took 58 ms and left 34 MB, the second 11 ms
 * and 3.4 MB; the third took 4 ms and gave 14 MB of emptied pages back to the system; more changed nothing.
 */
const COLLECTIONS = 3;
const REHEARSALS = 24;
/** Of texts whose values are held on to. */
const SMALL_LENGTH_MAX = 65_536;

/** The async context that a function has when it is loaded: each request begins in it, not in that of the request before. */
let atRest;
let handler;
let open = null;
let onIdle = null;
/** Whether the last request set a trace id in the environment, whose members are slow to look at. */
let traced = env._X_AMZN_TRACE_ID !== undefined;
let callbackWarned = false;
let rehearsing = false;
/** The server rehearses a start, and ends the process behind the answer: nothing of the function's runs. */
let rehearsal = false;
/**
 * Headers, a context and an answer as the rehearsal made them: V8 forgets shapes of which no object is left. What it then optimises does not know them, and
 * each clone makes them anew with its first request.
 */
let rehearsed;
let rehearsedAnswer;
/**
 * What the last request brought and what it got, if they are small and nothing has collected them yet: what hangs on them may be large. Their shapes, too, would have
 * to be made anew: so the collections before a freeze find them in use, and behind these they are garbage.
 */
const last = { event: undefined, value: undefined, inUse: undefined };
let noting = false;
const weakly = (value, length) =>
  length <= SMALL_LENGTH_MAX && typeof value === "object" && value !== null ? new WeakReference(value) : undefined;
/** While the handler is being loaded, errors that belong to nobody are errors of loading. */
let loading = true;

/** Pipes on 1 and 2 must block: libuv would queue what a full pipe refuses, and the reply would overtake it. */
function blockingOutput(name) {
  const property = Object.getOwnPropertyDescriptor(process, name);
  let stream;
  Object.defineProperty(process, name, {
    configurable: true,
    enumerable: true,
    get() {
      if (stream === undefined) {
        stream = property.get.call(process);
        stream._handle?.setBlocking?.(true);
      }
      return stream;
    },
  });
}

function installGlobals() {
  const lazy = (name) => ({ enumerable: true, configurable: true, get: () => require("./streaming.cjs")[name] });
  globalThis.awslambda = Object.defineProperties(
    {},
    {
      snapshot: { value: snapshot, enumerable: true },
      streamifyResponse: lazy("streamifyResponse"),
      HttpResponseStream: lazy("HttpResponseStream"),
    },
  );
}

/** Writes the answer of `request` unless it has one, and parks after one turn of the event loop. */
function answer(request, header, body) {
  if (open !== request) return;
  open = null;
  onIdle = null;
  header.requestId = request.id;
  header.handlerMs = request.startedAt === 0 ? 0 : now() - request.startedAt;
  header.maxMemoryMb = Math.ceil(resourceUsage().maxRSS / 1024);
  send(header, body, rehearsing);
  if (rehearsing) {
    rehearsedAnswer = header;
    return;
  }
  if (rehearsal && othersWait()) serve();
  nextTurn(atRest, serve);
}

/** Whoever answered may have done so within AsyncLocalStorage.run, whose store an immediate would carry on. */
function nextTurn(context, callback) {
  context.runInAsyncScope(setImmediate, undefined, callback);
}

function fail(request, thrown) {
  if (open !== request) return;
  const error = describe(thrown);
  const body = stringify(error);
  if (!rehearsing) logLine(`ERROR\tRequestId: ${request.id}\tInvoke Error\t${inFull(thrown, error)}`);
  answer(request, { type: "error" }, body);
}

function failTooLarge(request, bytes) {
  const message = `Response payload size (${bytes} bytes) exceeded maximum allowed payload size (${REPLY_BYTES_MAX} bytes).`;
  const body = stringify({ errorType: "Function.ResponseSizeTooLarge", errorMessage: message, trace: [] });
  answer(request, { type: "error", platformError: "RESPONSE_TOO_LARGE" }, body);
}

function succeed(request, value) {
  if (open !== request) return;
  let body;
  try {
    body = stringify(value) ?? "null";
  } catch (error) {
    fail(request, runtimeError("MarshalError", `Unable to stringify response body: ${textOf(error)}`, error));
    return;
  }
  if (noting) last.value = weakly(value, body.length);
  // A character is at most three bytes in UTF-8, so short texts need not be measured.
  if (body.length * 3 > REPLY_BYTES_MAX && Buffer.byteLength(body) > REPLY_BYTES_MAX) {
    failTooLarge(request, Buffer.byteLength(body));
    return;
  }
  answer(request, { type: "result" }, body);
}

function succeedStreaming(request, stream) {
  const body = stream.body();
  if (body.length > REPLY_BYTES_MAX) failTooLarge(request, body.length);
  else answer(request, { type: "result", contentType: stream.contentType ?? "application/octet-stream" }, body);
}

function settle(request, error, value) {
  if (error !== undefined && error !== null) fail(request, error);
  else succeed(request, value);
}

function warnCallback() {
  if (callbackWarned) return;
  callbackWarned = true;
  logLine("thaw: callback handlers are on the way out in Lambda; make the handler async and return its result");
}

/**
 * Whether this is the handler's first word on `request`: by the callback, by `context.done` and its kin, by its promise, or by throwing.
 * Only that counts, as in Lambda: an async handler that calls back has answered with that, and not with what its promise brings then.
 */
function decide(request) {
  if (request.decided) return false;
  request.decided = true;
  return true;
}

/** The event loop is empty and the handler has said nothing. From an async function, whose promise can never be settled now, that is an error. */
function giveUp(request) {
  if (Object.prototype.toString.call(handler) !== "[object AsyncFunction]") succeed(request, null);
  else fail(request, runtimeError("NodeJsExit", "the event loop ran empty, but the handler's promise was never settled"));
}

function call(request, header) {
  let event;
  try {
    event = header.text === "" ? {} : parse(header.text);
  } catch (error) {
    fail(request, runtimeError("UnmarshalError", `Unable to parse event: ${textOf(error)}`, error));
    return;
  }
  // Not of a clone's first request: it would pay for it.
  noting = !rehearsing && header.thaw === undefined;
  if (noting) last.event = weakly(event, header.text.length);
  const finish = (error, value) => {
    warnCallback();
    if (decide(request)) settle(request, error, value);
  };
  const context = new Context(header, finish);
  const callback = (error, value) => {
    warnCallback();
    if (!decide(request)) return;
    const failed = error !== undefined && error !== null;
    if (failed || !context.callbackWaitsForEmptyEventLoop) settle(request, error, value);
    else request.onIdle = () => succeed(request, value);
  };
  // Not written straight into the member: see context.cjs.
  const idle = () => giveUp(request);
  request.onIdle = idle;
  onIdle = () => request.onIdle();
  request.startedAt = now();
  try {
    if (handler[STREAMING] !== undefined) {
      const { callStreaming } = require("./streaming.cjs");
      callStreaming(handler, event, context, request).then(
        (stream) => succeedStreaming(request, stream),
        (error) => fail(request, error),
      );
      return;
    }
    const result = handler(event, context, callback);
    if (typeof result?.then === "function") {
      Promise.resolve(result).then(
        (value) => decide(request) && succeed(request, value),
        (error) => decide(request) && fail(request, error),
      );
      return;
    }
    const returned = () => decide(request) && succeed(request, result);
    if (handler.length >= 3) warnCallback();
    // What it returns may be what an expression happened to give, such as a server: the callback, or context.done, says more, and may be yet to come.
    else if (result !== undefined) request.onIdle = returned;
  } catch (error) {
    if (decide(request)) fail(request, error);
  }
}

/** A clone whose restoring failed half-way must not serve: it answers and ends. */
function failRestore(request, thrown) {
  const { errorType, errorMessage, trace } = describe(thrown);
  const body = stringify({ errorType: "Runtime.AfterRestoreError", errorMessage: `${errorType}: ${errorMessage}`, trace });
  logLine(`ERROR\tRequestId: ${request.id}\tAfter-restore hook\t${body}`);
  answer(request, { type: "error", last: true }, body);
  exit(1);
}

/** In place of the handler: what most of them do. Nothing that a function has put in place of Node's own is called. */
async function rehearseRequest(event) {
  if (!Object.hasOwn(process.stdout, "write")) log("rehearsal");
  return event;
}

/** Whether somebody waits for the event loop, of which the function's code would be called: timers, sockets, workers. Output has up to two pipes. */
function othersWait() {
  const waiting = process.getActiveResourcesInfo();
  return waiting.length > 2 || waiting.some((type) => type !== "PipeWrap");
}

/** Always of one shape: what follows is compiled for that, and the first request after a thaw must not look new to it. */
function toldIn({ text, requestId, deadlineMs, functionName, functionVersion, memoryMb, invokedArn, clientContext }) {
  return { text, requestId, deadlineMs, functionName, functionVersion, memoryMb, invokedArn, clientContext };
}

function invoke(header) {
  if (header.rehearsal) {
    rehearsal = true;
    handler = rehearseRequest;
  }
  const told = toldIn(header);
  const request = { id: header.requestId, startedAt: 0, onIdle: null, decided: false };
  open = request;
  if (header.traceId !== undefined) {
    env._X_AMZN_TRACE_ID = header.traceId;
    traced = true;
  } else if (traced) {
    delete env._X_AMZN_TRACE_ID;
    traced = false;
  }
  if (header.thaw !== undefined || header.resumed) {
    if (header.thaw !== undefined) unique.renew(header.thaw);
    const hooks = runAfter(rehearsing || rehearsal);
    if (hooks !== undefined) {
      onIdle = () => failRestore(request, new Error("an after-restore hook never finished"));
      hooks.then(
        () => call(request, told),
        (error) => failRestore(request, error),
      );
      return;
    }
  }
  call(request, told);
}

/** Tells the server, and back into the read at once. */
function prepared(startedAt, told) {
  last.inUse = undefined;
  send({ type: "prepared", hygieneMs: now() - startedAt, ...told }, "");
  serve();
}

function prepare({ collect: collects = true, heat: measures = false, seeds: tells = false }) {
  if (rehearsing) return;
  const startedAt = now();
  last.inUse = [last.event?.deref(), last.value?.deref()];
  const refuse = (error) => {
    if (onIdle === null) return;
    onIdle = null;
    last.inUse = undefined;
    send({ type: "prepareError" }, stringify(describe(error)));
    setImmediate(serve);
  };
  const seeds = () => (tells ? { seeds: renewal.seeds() } : {});
  onIdle = () => refuse(new Error("a before-snapshot hook never finished"));
  const hooksRun = () => {
    if (onIdle === null) return undefined;
    unique.remember();
    if (!collects) {
      onIdle = null;
      setImmediate(() => prepared(startedAt, seeds()));
      return undefined;
    }
    onIdle = () => refuse(new Error("bug: the rehearsal did not end"));
    return rehearseOnce().then(() => {
      onIdle = null;
      // Ahead of the collections, which also take what looking at functions leaves behind.
      const heat = measures ? codeHeat(loaded(), serve) : undefined;
      const told = { ...(heat === undefined ? {} : { heat }), ...seeds() };
      setImmediate(() => collectGarbage(COLLECTIONS, () => prepared(startedAt, told)));
    });
  };
  runBefore().then(hooksRun).catch(refuse);
}

function serve() {
  let header;
  try {
    header = receive();
  } catch (error) {
    if (!(error instanceof ServerGone)) logLine(`thaw: ${textOf(error)}`);
    exit(error instanceof ServerGone ? 0 : 1);
  }
  take(header);
}

function take(header) {
  const type = get(header, "type");
  if (type === "invoke") invoke(header);
  else if (type === "prepare") prepare(header);
  else if (type === "load") load(header);
  else {
    logLine(`thaw: the server sent a frame of unknown type ${textOf(type)}`);
    exit(1);
  }
}

/**
 * Once in a lineage: what it brought is in every image since. A second one, with values of its own, would bring streams and events that the
 * function has made hot back into the interpreter.
 */
async function rehearseOnce() {
  if (rehearsed !== undefined) return;
  rehearseConsole();
  // A base has not loaded a function.
  const context = atRest ?? new AsyncResource("thaw.serve");
  await rehearseTimers(REHEARSALS, (callback) => nextTurn(context, callback));
  rehearsed = await rehearse();
}

/**
 * Requests and errors of our own making go the whole way, with a thaw and without, except into the descriptor and the after-hooks. As
 * often as V8 needs to remember shapes: what it has not seen when it optimises makes it throw the code away at the first request. A frame
 * that prepares ends where it begins: telling it from a request is part of what is optimised.
 */
async function rehearse() {
  const plain = {
    type: "invoke",
    requestId: "00000000-0000-0000-0000-000000000000",
    deadlineMs: Date.now(),
    functionName: env.AWS_LAMBDA_FUNCTION_NAME,
    functionVersion: env.AWS_LAMBDA_FUNCTION_VERSION,
    memoryMb: Number(env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE ?? 128),
    invokedArn: "",
  };
  const thaw = { id: "", entropy: "00".repeat(32), pid: process.pid, generation: 0 };
  /** In the order of the engine's members. */
  const headerOf = (members) => Object.assign(parse(stringify({ ...plain, ...members })), { text: "{}" });
  const [ownHandler, ownIdle] = [handler, onIdle];
  rehearsing = true;
  let given;
  try {
    for (let i = 0; i < REHEARSALS; i++) {
      handler = async (event, context) => {
        given = context;
        return context.getRemainingTimeInMillis() > 0 && event;
      };
      take(headerOf(i % 2 === 0 ? { thaw } : {}));
      await null;
      await null;
      take({ type: "prepare" });
    }
    const answered = rehearsedAnswer;
    handler = async () => {
      throw new Error("rehearsal");
    };
    invoke(headerOf({ thaw }));
    await null;
    await null;
    if (open !== null) throw new Error("bug: the rehearsal did not answer");
    return [headerOf({ thaw }), headerOf({}), given, answered];
  } finally {
    open = null;
    [handler, onIdle] = [ownHandler, ownIdle];
    rehearsing = false;
  }
}

/** Errors that belong to no promise of the handler's: answered when a request is open, and the end in any case. */
function die(error, inInit, thrown) {
  const body = stringify(error);
  if (inInit) {
    logLine(`ERROR\tInit Error\t${inFull(thrown, error)}`);
    send({ type: "initError" }, body);
  } else {
    logLine(`ERROR\tRequestId: ${open?.id ?? "none"}\t${inFull(thrown, error)}`);
    if (open !== null) answer(open, { type: "error", last: true }, body);
  }
  exit(1);
}

function boot() {
  spent.install();
  unique.install();
  blockingOutput("stdout");
  blockingOutput("stderr");
  installGlobals();
  console.fatal = (...parts) => console.error(...parts);
  process.on("beforeExit", () => onIdle?.());
  process.on("uncaughtException", (error) => die(describe(error), loading, error));
  process.on("unhandledRejection", (reason) => {
    const { errorType, errorMessage, trace } = describe(reason);
    const text = trace.length > 0 ? `${errorType}: ${errorMessage}` : errorMessage;
    die({ errorType: "Runtime.UnhandledPromiseRejection", errorMessage: text, trace }, loading, reason);
  });
  if (env.THAW_BASE === undefined) {
    void loadFunction();
    return;
  }
  loading = false;
  setImmediate(() => {
    send({ type: "ready" }, "");
    serve();
  });
}

/** In a clone of the base: the function's environment takes the place of the base's, and from here on all is as after a boot. */
function load(header) {
  const wanted = parse(header.text).env;
  for (const name of Object.keys(env)) if (!Object.hasOwn(wanted, name)) delete env[name];
  for (const [name, value] of Object.entries(wanted)) if (env[name] !== value) env[name] = value;
  unique.renew(header.thaw);
  void loadFunction();
}

async function loadFunction() {
  loading = true;
  readEnvironment();
  onIdle = () => die(describe(runtimeError("NodeJsExit", "the event loop ran empty while the handler was being loaded")), true);
  try {
    handler = await loadHandler(env.LAMBDA_TASK_ROOT ?? process.cwd(), env._HANDLER ?? "");
  } catch (error) {
    die(describe(error), true, error);
  }
  // A turn of the event loop first: a rejection that the module left behind belongs to loading.
  setImmediate(() => {
    loading = false;
    onIdle = null;
    atRest = new AsyncResource("thaw.serve");
    send({ type: "ready" }, "");
    serve();
  });
}

boot();
