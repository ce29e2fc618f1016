/**
 * A load generator: N kept-alive connections, each sending its next request when the last answer is in. Bounded in count and in
 * time. Runs in a process of its own ({@link loadFromChild}), so that its event loop is not the one it measures; what it
 * costs is part of its result, because client and server share the machine's cores.
 */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual, promisify } from "node:util";
import { errorText } from "../base/errors.js";
import { encodeRequest, HttpConnection, type HttpRequest } from "./http-connection.js";
import { type Summary, summarize } from "./statistics.js";

/** What is sent, by how many, for how long. */
export interface LoadOptions {
  readonly url: string;
  readonly request: HttpRequest;
  /** The only right answer, as JSON has it. */
  readonly reply: unknown;
  readonly connections: number;
  /** Stops after so many answers, those of the warm-up not counted. */
  readonly requestsMax: number;
  /** Stops after so many milliseconds, the warm-up not counted. */
  readonly msMax: number;
  /** Requests for each connection whose time is not kept. Default 50. */
  readonly warmupPerConnection?: number;
}

/** What came of it, the warm-up left out but for its failures. */
export interface LoadResult {
  readonly answered: number;
  readonly failed: number;
  /** The first few reasons, so that a failed request is never only a number. */
  readonly failures: readonly string[];
  readonly seconds: number;
  readonly perSecond: number;
  /** Latency of a request in microseconds. */
  readonly latencyUs: Summary;
  /** Every latency in microseconds, in the order of answers. */
  readonly samples: readonly number[];
  /** CPU time of the generator itself while it measured. */
  readonly cpuMs: { readonly user: number; readonly system: number };
}

const FAILURES_KEPT = 5;
const CHILD_EXTRA_MS = 30_000;

/** Sends the load from this process. */
export async function generateLoad(options: LoadOptions): Promise<LoadResult> {
  const state = { answered: 0, failed: 0, failures: [] as string[], samples: [] as number[] };
  const connections = await Promise.all(Array.from({ length: options.connections }, () => HttpConnection.open(options.url)));
  const bytes = encodeRequest(new URL(options.url).host, options.request);
  const isRight = comparerOf(options.reply);
  const fail = (reason: string) => {
    state.failed += 1;
    if (state.failures.length < FAILURES_KEPT) state.failures.push(reason);
  };
  try {
    await Promise.all(connections.map((each) => repeat(each, bytes, options.warmupPerConnection ?? 50, isRight, fail)));
    const cpu = process.cpuUsage();
    const started = performance.now();
    const endsAt = started + options.msMax;
    let left = options.requestsMax;
    await Promise.all(
      connections.map(async (connection) => {
        while (connection.usable && performance.now() < endsAt && left-- > 0) {
          const us = await timeOne(connection, bytes, isRight, fail);
          if (us === undefined) continue;
          state.answered += 1;
          state.samples.push(us);
        }
      }),
    );
    const seconds = (performance.now() - started) / 1000;
    const used = process.cpuUsage(cpu);
    return {
      ...state,
      seconds,
      perSecond: state.answered / seconds,
      latencyUs: summarize(state.samples),
      cpuMs: { user: used.user / 1000, system: used.system / 1000 },
    };
  } finally {
    for (const connection of connections) connection.close();
  }
}

/** Every answer is compared; the same bytes as the last right ones need not be parsed, which the measured machine would pay for. */
function comparerOf(reply: unknown): IsRight {
  let right = Buffer.alloc(0);
  return (body) => {
    if (body.equals(right)) return true;
    if (!isDeepStrictEqual(parsed(body), reply)) return false;
    right = Buffer.from(body);
    return true;
  };
}

/** Undefined, which no JSON is, when it is none. */
function parsed(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString());
  } catch {
    return undefined;
  }
}

type IsRight = (body: Buffer) => boolean;
type Fail = (reason: string) => void;

async function repeat(connection: HttpConnection, bytes: Buffer, times: number, isRight: IsRight, fail: Fail): Promise<void> {
  for (let index = 0; index < times && connection.usable; index++) await timeOne(connection, bytes, isRight, fail);
}

/** A function error is HTTP 200 with a header, and still a failure here; so is a wrong answer. */
async function timeOne(connection: HttpConnection, bytes: Buffer, isRight: IsRight, fail: Fail): Promise<number | undefined> {
  try {
    const { status, us, body, headers } = await connection.send(bytes);
    if (status !== 200 || headers["x-amz-function-error"] !== undefined)
      fail(`status ${status}: ${body.toString("utf8", 0, 200)}`);
    else if (isRight(body)) return us;
    else fail(`wrong reply: ${body.toString("utf8", 0, 200)}`);
  } catch (error) {
    fail(errorText(error));
  }
  return undefined;
}

/** Sends the load from a child process and waits for its result. */
export async function loadFromChild(options: LoadOptions): Promise<LoadResult> {
  const { stdout } = await promisify(execFile)(process.execPath, [CHILD, JSON.stringify(options)], {
    timeout: options.msMax + CHILD_EXTRA_MS,
    maxBuffer: 64 * 1024 * 1024,
  });
  return JSON.parse(stdout) as LoadResult;
}

/** The compiled entry, also when this file runs from its source in a test. */
const CHILD = fileURLToPath(new URL("../../dist/lab/load-child.js", import.meta.url));
