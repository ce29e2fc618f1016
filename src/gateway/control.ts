/**
 * The routes under `/thaw/v1` that the CLI uses. Bodies are JSON, but for what a deploy sends (deploy-body.ts) and the text of logs.
 *
 *     POST   /functions/{name}?runtime&handler&memory&timeout&tmp&maxInstances&provisioned&learn&description&env=K=V…   create
 *     PUT    /functions/{name}?…                                                                   create or replace
 *     GET    /functions                  GET /functions/{name}              DELETE /functions/{name}
 *     POST   /functions/{name}/hibernate          POST /functions/{name}/wake        its idle instances, now
 *     GET    /functions/{name}/ready?timeout                                waits for the image
 *     GET    /functions/{name}/image     GET /functions/{name}/images
 *     POST   /functions/{name}/heat?requests&from   makes a hotter image, body: the event; replies when it is made, which may take minutes
 *     GET    /functions/{name}/logs?bytes|follow=1
 *     GET    /server                     GET /health                        GET /metrics
 */

import { once } from "node:events";
import { createRequire } from "node:module";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { inTurns } from "../base/turns.js";
import { KIB } from "../base/units.js";
import type { EngineStats, ImageInspection, RuntimeInfo, StartResult } from "../engine/types.js";
import {
  type DeployRequest,
  type FunctionInfo,
  type HandReport,
  type HeatReport,
  type ImageEntry,
  type ImageStatus,
  LIMITS,
  type Metrics,
  type Platform,
  type WarmUp,
} from "../platform/types.js";
import { packageTooLarge } from "../platform/uploads.js";
import { DEPLOY_BYTES_MAX, readDeployBody } from "./deploy-body.js";
import { deployQuery, heatQuery, logsQuery, readQuery, readyQuery } from "./query.js";
import { readUpload, UPLOAD_MS } from "./upload.js";

/** Where these routes stand. */
export const CONTROL_PREFIX = "/thaw/v1";

/** How the most recent request to a function was started. */
export type LastStart = Pick<StartResult, "kind" | "us" | "loader" | "generation"> & { readonly atMs: number };

/** What `image inspect` shows. */
export interface ImageView extends ImageStatus {
  readonly inspection?: ImageInspection;
}

/** A function as the control routes show it. */
export interface FunctionView extends Omit<FunctionInfo, "warmUp"> {
  /** Without the events themselves: they may have a megabyte, and lists show many functions. */
  readonly warmUp?: Omit<WarmUp, "events"> & { readonly eventCount: number };
  /** Absent until a request came, since the server started. */
  readonly lastStart?: LastStart;
}

/** What `/server` tells. */
export interface ServerView {
  readonly version: string;
  readonly pid: number;
  readonly startedMs: number;
  readonly canFreeze: boolean;
  readonly runtimes: readonly RuntimeInfo[];
}

/** What `/thaw/v1/metrics` tells. */
export interface MetricsView extends Metrics {
  readonly engine: EngineStats;
}

/** All counters and gauges of this moment. */
export const metricsOf = (platform: Platform): MetricsView => ({ ...platform.metrics(), engine: platform.engine.stats() });

/** What the routes need besides the platform. */
export interface ControlContext {
  readonly platform: Platform;
  /** By function name. */
  readonly lastStarts: Map<string, LastStart>;
  /** Aborted when the server begins to close: ends streams that would go on for ever. */
  readonly closing: AbortSignal;
}

const { version } = createRequire(import.meta.url)("../../package.json") as { version: string };
const STARTED_MS = Date.now();
/** Written as JSON in a millisecond or two. */
const FUNCTIONS_AT_ONCE = 200;

/** Adds all control routes to `app`, which has the prefix already. */
export function addControlRoutes(app: FastifyInstance, { platform, lastStarts, closing }: ControlContext): void {
  type Named = { Params: { name: string } };
  const view = ({ warmUp, ...info }: FunctionInfo): FunctionView => {
    const lastStart = lastStarts.get(info.name);
    const shown = lastStart === undefined ? info : { ...info, lastStart };
    if (warmUp === undefined) return shown;
    const { events, ...rest } = warmUp;
    return { ...shown, warmUp: { ...rest, eventCount: events.length } };
  };

  const asked = ({ params: { name }, query, method }: FastifyRequest<Named>): Omit<DeployRequest, "zip"> => {
    const { memory, timeout, tmp, ...rest } = readQuery(deployQuery, query);
    return { ...rest, name, memoryMb: memory, timeoutMs: timeout, tmpMb: tmp, update: method === "PUT" };
  };
  const deploy = async (request: FastifyRequest<Named>): Promise<FunctionView> => {
    const { name } = request.params;
    const body = readUpload(request.raw, { bytes: DEPLOY_BYTES_MAX, ...UPLOAD_MS }, packageTooLarge);
    const parts = await readDeployBody(request.headers["content-type"], body, (source) => platform.receive(source));
    try {
      const info = await platform.deploy({ ...asked(request), ...parts });
      lastStarts.delete(name);
      return view(info);
    } finally {
      await parts.zip.close();
    }
  };
  app.register((scope, _options, done) => {
    // The body stays where it is: it is read as it comes.
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser("*", (_request, _body, parsed) => parsed(null));
    const options = {
      bodyLimit: DEPLOY_BYTES_MAX,
      // What can be refused without the package is refused before it is sent, to who asks whether to send it.
      onRequest: async (request: FastifyRequest<Named>): Promise<void> => platform.checkDeploy(asked(request)),
    };
    scope.post<Named>("/functions/:name", options, async (request, reply) => {
      const info = await deploy(request);
      return reply.code(201).send(info);
    });
    scope.put<Named>("/functions/:name", options, deploy);
    done();
  });
  app.get("/functions", async (_request, reply) => {
    await platform.measure();
    const functions: string[] = [];
    await inTurns(platform.list(), FUNCTIONS_AT_ONCE, (piece) => {
      for (const info of piece) functions.push(JSON.stringify(view(info)));
    });
    return reply.type("application/json; charset=utf-8").send(`{"functions":[${functions.join(",")}]}`);
  });
  app.get<Named>("/functions/:name", async ({ params }) => {
    await platform.measure(params.name);
    return view(platform.get(params.name));
  });
  app.post<Named>("/functions/:name/hibernate", ({ params }): Promise<HandReport> => platform.hibernate(params.name));
  app.post<Named>("/functions/:name/wake", ({ params }): Promise<HandReport> => platform.wake(params.name));
  app.delete<Named>("/functions/:name", async ({ params }, reply) => {
    await platform.remove(params.name);
    lastStarts.delete(params.name);
    return reply.code(204).send();
  });
  app.get<Named>("/functions/:name/ready", ({ params, query }) =>
    platform.waitReady(params.name, { timeoutMs: readQuery(readyQuery, query).timeout }),
  );
  app.get<Named>("/functions/:name/image", async ({ params }): Promise<ImageView> => {
    const inspection = await platform.inspect(params.name);
    return { ...platform.get(params.name).image, ...(inspection === undefined ? {} : { inspection }) };
  });
  app.get<Named>("/functions/:name/images", async ({ params }): Promise<ImageEntry[]> => platform.images(params.name));
  app.post<Named>(
    "/functions/:name/heat",
    { bodyLimit: LIMITS.payloadBytes },
    ({ params, query, body }, reply): Promise<HeatReport> => {
      const payload = body instanceof Buffer && body.length > 0 ? body : undefined;
      const waits = new AbortController();
      reply.raw.once("close", () => waits.abort());
      return platform.heat(params.name, { ...readQuery(heatQuery, query), payload, signal: waits.signal });
    },
  );

  app.get<Named>("/functions/:name/logs", async ({ params, query }, reply) => {
    const { follow, bytes } = readQuery(logsQuery, query);
    if (!follow) return reply.type("text/plain; charset=utf-8").send(await platform.logs(params.name, { bytes }));
    // Before the first byte, while an unknown function can still be a 404.
    platform.get(params.name);
    await sendLogs(reply, platform, params.name, closing);
    return reply;
  });

  app.get("/server", async (): Promise<ServerView> => {
    const { canFreeze, runtimes } = platform.engine;
    return { version, pid: process.pid, startedMs: STARTED_MS, canFreeze, runtimes };
  });
  app.get("/health", async () => ({ status: "ok" }));
  app.get("/metrics", async (): Promise<MetricsView> => metricsOf(platform));
}

/** Of a log, what is handed to a reader's socket at once: whatever its reader does not take is held for it alone. */
const PIECE_LENGTH = 16 * KIB;

/** Never cut between the halves of a character. */
function* piecesOf(text: string): Generator<string> {
  for (let from = 0, to: number; from < text.length; from = to) {
    to = from + PIECE_LENGTH;
    if (/[\ud800-\udbff]/.test(text.charAt(to - 1))) to += 1;
    yield text.slice(from, to);
  }
}

/** Writes entries as they come, until the reader or the server goes away. A slow reader holds up only itself. */
async function sendLogs(reply: FastifyReply, platform: Platform, name: string, closing: AbortSignal): Promise<void> {
  reply.hijack();
  const { raw } = reply;
  const gone = new AbortController();
  raw.once("close", () => gone.abort());
  const signal = AbortSignal.any([gone.signal, closing]);
  raw.writeHead(200, { "content-type": "text/plain; charset=utf-8", "cache-control": "no-store" });
  raw.flushHeaders();
  try {
    for await (const entry of platform.follow(name, { signal })) {
      for (const piece of piecesOf(entry.text)) if (!raw.write(piece)) await once(raw, "drain", { signal });
    }
    raw.end();
  } catch (error) {
    // The status is sent: a cut connection is the one way left to say that this is not the regular end.
    if (signal.aborted) raw.end();
    else raw.destroy(error as Error);
  }
}
