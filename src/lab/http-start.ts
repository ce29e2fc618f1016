/** A start demanded through HTTP: sent with `X-Thaw-Prefer`, checked by `X-Thaw-Start`, timed by the client. */
import { nowMs, sleep } from "../base/clock.js";
import type { Loader, StartKind } from "../engine/types.js";
import { parseStartHeader, type TraceHeader } from "../platform/start-header.js";
import type { HttpConnection } from "./http-connection.js";
import type { Arm } from "./interleave.js";
import { metricsOf } from "./server-under-test.js";
import type { StartSample } from "./start-arms.js";

/** A way of starting as the request header names it. */
export interface HttpWay {
  readonly name: string;
  readonly kind: StartKind;
  readonly loader?: Loader;
  readonly prefer: string;
  /** Timed just after another request of the same kind, with every cache still filled by it. */
  readonly justBefore?: boolean;
  /** Its idle instances are hibernated first, off the clock. */
  readonly hibernated?: boolean;
}

/** One start through HTTP. */
export interface HttpStart {
  readonly sample: StartSample;
  readonly payload: Buffer;
  /** When it was asked for. Reading pages and memory takes time, so a traced start is not one to time. */
  readonly trace?: TraceHeader;
}

/** Invokes `name` in that way. Throws when it failed, or started in another way than demanded. */
export async function startOverHttp(
  connection: HttpConnection,
  name: string,
  way: HttpWay,
  body: string,
  trace = false,
): Promise<HttpStart> {
  const response = await connection.request({
    method: "POST",
    path: `/2015-03-31/functions/${name}/invocations`,
    headers: { "X-Thaw-Prefer": way.prefer, ...(trace ? { "X-Thaw-Trace": "1" } : {}) },
    body,
  });
  const { status, headers, body: payload } = response;
  if (status !== 200 || headers["x-amz-function-error"] !== undefined) {
    throw new Error(`${way.name} of ${name}: status ${status}: ${payload.toString("utf8", 0, 400)}`);
  }
  const said = headers["x-thaw-start"] ?? "";
  const { kind, loader, us: startUs, wait: waitUs = 0, fallback } = parseStartHeader(said);
  if (typeof startUs !== "number" || typeof waitUs !== "number")
    throw new Error(`X-Thaw-Start cannot be read: ${JSON.stringify(said)}`);
  if (kind !== way.kind || (way.loader !== undefined && loader !== way.loader) || fallback !== undefined)
    throw new Error(`meant to be "${way.name}", but was ${said}`);
  const us = response.us - waitUs;
  const phases = [
    { name: "start", us: startUs },
    { name: "request and HTTP", us: us - startUs },
  ];
  return {
    sample: { us, phases, poolUs: waitUs },
    payload,
    ...(trace ? { trace: JSON.parse(headers["x-thaw-trace"] ?? "null") as TraceHeader } : {}),
  };
}

/** After husks were made; a longer pause lets the processors fall asleep, which would be measured, too. */
const SETTLE_MS = 1;
const REST_MS_MAX = 15_000;
/** Counts that stay the same for so long are those of a server that lacks nothing. */
const STILL_MS = 300;

/** What a server has while nobody asks for anything. */
export interface AtRest {
  /** Husks that wait, by level. */
  readonly husks: Readonly<Record<string, number>>;
  /** Instances that live, one whose memory is being taken down included. */
  readonly instances: number;
}

/** What the server holds once nothing of it has changed for a while. */
export async function atRest(connection: HttpConnection): Promise<AtRest> {
  const until = nowMs() + REST_MS_MAX;
  let rest = await observe(connection);
  for (let still = nowMs(); nowMs() - still < STILL_MS; await sleep(10)) {
    const now = await observe(connection);
    if (JSON.stringify(now) !== JSON.stringify(rest)) still = nowMs();
    rest = now;
    if (nowMs() > until) throw new Error(`the server did not come to rest: ${JSON.stringify(rest)}`);
  }
  return rest;
}

/**
 * Waits off the clock until husks that were taken are replaced, and the instance of the start before is gone: either takes processors from
 * whatever is measured. A booted worker's 80 MB are taken down behind its answer: a thaw that began then took 5.0 ms instead of 3.6.
 */
async function settled(connection: HttpConnection, rest: AtRest): Promise<void> {
  const until = nowMs() + REST_MS_MAX;
  for (;;) {
    const { husks, instances } = await observe(connection);
    if (instances <= rest.instances && Object.entries(rest.husks).every(([level, count]) => (husks[level] ?? 0) >= count)) return;
    if (nowMs() > until) {
      throw new Error(`the server did not come to rest: ${JSON.stringify({ husks, instances })}, before ${JSON.stringify(rest)}`);
    }
    await sleep(1);
  }
}

async function observe(connection: HttpConnection): Promise<AtRest> {
  const { husks, instances } = (await metricsOf(connection)).engine;
  return { husks, instances };
}

/** One way of starting `name` as an arm. `body` is the payload of a round; `verify` throws when its reply is wrong; `rest`: {@link atRest}. */
export function httpArm(
  connection: HttpConnection,
  name: string,
  way: HttpWay,
  { body, verify, rest }: { body: (round: number) => string; verify: (round: number, payload: Buffer) => void; rest: AtRest },
): Arm<StartSample> {
  return {
    name: way.name,
    async prepare(round) {
      await settled(connection, rest);
      await sleep(SETTLE_MS);
      // Wakes the connection and the server's way to the function, but not the function: the pause is ours, not the start's.
      await dryRun(connection, name);
      if (way.justBefore === true) await startOverHttp(connection, name, way, body(round));
      if (way.hibernated === true) await hibernate(connection, name);
    },
    async run(round) {
      const { sample, payload } = await startOverHttp(connection, name, way, body(round));
      verify(round, payload);
      return sample;
    },
  };
}

/** Requests and starts before the first that is timed: a server that has served none yet still compiles its own code. */
const WARMUP_REQUESTS = 200;
/** The first of them record what they touch, and are slower for it: two to five of an image, one at a time. */
const WARMUP_STARTS = 100;

/** Lets the working set be recorded, makes the instance that `reuse` finds, and warms the server and this connection up. */
export async function warmUp(connection: HttpConnection, name: string, body: string): Promise<void> {
  const splice: HttpWay = {
    name: "a start to warm up",
    kind: "thaw",
    loader: "splice",
    prefer: "thaw;loader=splice;dispose",
  };
  for (let count = 0; count < WARMUP_STARTS; count++) await startOverHttp(connection, name, splice, body);
  await startOverHttp(connection, name, { name: "the first start", kind: "thaw", prefer: "thaw" }, body);
  const reuse: HttpWay = { name: "a request to warm up", kind: "reuse", prefer: "reuse" };
  for (let count = 0; count < WARMUP_REQUESTS; count++) await startOverHttp(connection, name, reuse, body);
}

/** Hibernates the idle instances of `name`; throws unless one is hibernated then. */
export async function hibernate(connection: HttpConnection, name: string): Promise<void> {
  const { status, body } = await connection.request({ method: "POST", path: `/thaw/v1/functions/${name}/hibernate` });
  if (status !== 200) throw new Error(`hibernating ${name}: status ${status}: ${body.toString("utf8", 0, 300)}`);
}

async function dryRun(connection: HttpConnection, name: string): Promise<void> {
  const { status, body } = await connection.request({
    method: "POST",
    path: `/2015-03-31/functions/${name}/invocations`,
    headers: { "X-Amz-Invocation-Type": "DryRun" },
  });
  if (status !== 204) throw new Error(`a dry run of ${name}: status ${status}: ${body.toString("utf8", 0, 300)}`);
}
