/** `thaw serve`: the server, in the foreground, until a signal comes. */
import { once } from "node:events";
import { resolve } from "node:path";
import type { Command } from "commander";
import { errorText, isThawError, ThawError } from "../../base/errors.js";
import { createLogger, LOG_LEVELS, type LogLevel } from "../../base/log.js";
import { tierUpEarly } from "../../base/tier-up.js";
import { PARKED_LOADERS } from "../../engine/types.js";
import type { Gateway } from "../../gateway/index.js";
import { CPU_LATENCY_US_MAX, type CpuLatencyWish } from "../../linux/cpu-latency.js";
import type { MachineReport } from "../../linux/doctor.js";
import type { HeatPolicy, IdlePolicy, IdleTimesOptions, Platform, PlatformOptions } from "../../platform/types.js";
import { DEFAULT_PORT } from "../client.js";
import { levelCount, notEmpty, seconds, size, wholeNumber, word, wordOrNumber } from "../options.js";
import type { Context } from "./context.js";

const PARKED_LEVELS = ["runtime", "image", "prefaulted"] as const;
/** One is taken while the other is made. */
const RUNTIME_HUSKS = 2;
const POLICIES = ["fixed", "histogram"] as const;
const HEAT_POLICIES = ["fixed", "pronghorn"] as const;

interface Options {
  readonly data: string;
  readonly host: string;
  readonly port: number;
  readonly maxInstances?: number;
  readonly keepAlive?: number;
  readonly keepWarm?: number;
  readonly keepHibernated?: number;
  readonly policy?: (typeof POLICIES)[number];
  readonly heatPolicy?: (typeof HEAT_POLICIES)[number];
  readonly memoryBudget?: number;
  readonly bootOnly?: boolean;
  readonly sharedRuntime?: boolean;
  readonly pool?: number;
  readonly park?: Partial<Record<(typeof PARKED_LEVELS)[number], number>>;
  readonly parkLoader?: (typeof PARKED_LOADERS)[number];
  readonly cpuLatency?: CpuLatencyWish;
  readonly logLevel?: LogLevel;
}

/** Adds the command. */
export function addServe(program: Command, context: Context): void {
  program
    .command("serve")
    .description("run the server")
    .option("--data <folder>", "where functions, images and logs are kept", notEmpty, "./data")
    .option("--port <n>", "port to listen on; 0: any", wholeNumber(0, 65_535), DEFAULT_PORT)
    .option("--host <address>", "address to listen on; clients are not authenticated", notEmpty, "127.0.0.1")
    .option("--max-instances <n>", "instances that may run at once, over all functions (default: 32)", wholeNumber(1, 10_000))
    .option("--memory-budget <size>", "keep the private memory of all instances below this, such as 2G", size)
    .option(
      "--policy <name>",
      `when idle instances are hibernated and ended: ${POLICIES.join(", ")} (default: fixed)`,
      word(POLICIES),
    )
    .option(
      "--heat-policy <name>",
      `which image a start thaws, and when hotter ones are taken: ${HEAT_POLICIES.join(", ")} (default: fixed)`,
      word(HEAT_POLICIES),
    )
    .option("--keep-warm <seconds>", "how long an idle instance keeps its memory before it is hibernated (default: 60)", seconds)
    .option("--keep-hibernated <seconds>", "how long it stays hibernated before only its image remains (default: 3600)", seconds)
    .option("--keep-alive <seconds>", "how long an idle instance is kept in all (default: both together)", seconds)
    .option("--boot-only", "run functions without images, where freezing cannot work")
    .option(
      "--shared-runtime",
      "store the pages of a runtime once for all its images: less disk, a little slower starts, a hash seed in common",
    )
    .option("--pool <n>", "husks kept ready for any function of a runtime (default: 2)", wholeNumber(0, 1000))
    .option(
      "--park <level=n>",
      `husks kept parked for every image, at ${PARKED_LEVELS.join(", ")}; repeatable (default: runtime, ${RUNTIME_HUSKS} for what is started again and again)`,
      levelCount(PARKED_LEVELS),
    )
    .option("--park-loader <loader>", `how parked husks are filled: ${PARKED_LOADERS.join(", ")}`, word(PARKED_LOADERS))
    .option(
      "--cpu-latency <us>",
      "how long idle processors may take to wake while a request is answered: off, or microseconds, 0 keeps them awake (default: off)",
      wordOrNumber(["off"] as const, CPU_LATENCY_US_MAX),
    )
    .option("--log-level <level>", "default: THAW_LOG, else warn", word(LOG_LEVELS))
    .action((options: Options) => serve(context, options));
}

async function serve({ io, parts }: Context, options: Options): Promise<void> {
  const bootOnly = options.bootOnly === true;
  if (bootOnly && options.park !== undefined) {
    throw new ThawError("INVALID_ARGUMENT", {
      what: "--park and --boot-only exclude each other",
      why: "husks are parked for images, and there are none",
      fix: "Leave one of them out",
    });
  }
  const dataDir = resolve(io.cwd, options.data);
  // Loading the server's parts takes a fifth of a second, in which the machine's answers are waited for anyway.
  const [report, { fixedPoints, fixedPolicy, histogramPolicy, openPlatform, pronghorn }, { isLoopback, openGateway }] =
    await Promise.all([
      bootOnly ? undefined : parts.probeMachine(dataDir),
      import("../../platform/index.js"),
      import("../../gateway/index.js"),
    ]);
  if (report?.canFreeze === false) throw cannotFreeze(report);
  const log = createLogger({ level: options.logLevel ?? levelFrom(io.env.THAW_LOG) });
  const lost = new AbortController();
  const engine = await parts.openEngine({
    dataDir,
    bootOnly,
    ...(report === undefined ? {} : { interpreters: report.interpreters }),
    ...(options.sharedRuntime === true ? { sharedRuntime: true } : {}),
    ...(options.cpuLatency === undefined ? {} : { cpuLatency: options.cpuLatency }),
    log,
    onLost: (error) => lost.abort(error),
  });
  let platform: Platform | undefined;
  let gateway: Gateway | undefined;
  try {
    platform = await openPlatform({
      dataDir,
      engine,
      log,
      ...policies(options, {
        idle: { fixed: fixedPolicy, histogram: histogramPolicy },
        heat: { fixed: fixedPoints, pronghorn },
      }),
    });
    gateway = await openGateway({ platform, host: options.host, port: options.port, log, onRunIn: () => tierUpEarly() });
    const modes = [engine.canFreeze ? "freezing" : "booting only", ...engine.runtimes.map(({ id }) => id)];
    await io.out(`thaw listens on ${gateway.url} (${modes.join(", ")}), data in ${dataDir}\n`);
    if (!isLoopback(options.host)) {
      // The line above may say 127.0.0.1, an address that is reachable from here; this one is who else reaches it.
      const where = ["0.0.0.0", "::"].includes(options.host) ? "every address of this machine" : options.host;
      io.err(`warning: it listens on ${where}: whoever reaches it can deploy and run code, as requests are not authenticated\n`);
    }
    const end = AbortSignal.any([io.stop, lost.signal]);
    if (!end.aborted) await once(end, "abort");
    // Its state is on disk, and a supervisor, or whoever started it, starts it again.
    if (lost.signal.aborted) throw cannotGoOn(lost.signal.reason);
    io.err("stopping; a second signal forces it\n");
  } finally {
    // In the order of dependence, each step even when one before it failed.
    try {
      await gateway?.close(() => platform?.close() ?? Promise.resolve());
      await platform?.close();
    } finally {
      await engine.close();
    }
  }
}

interface PolicyMakers {
  readonly idle: Readonly<Record<(typeof POLICIES)[number], (options: IdleTimesOptions) => IdlePolicy>>;
  readonly heat: Readonly<Record<(typeof HEAT_POLICIES)[number], () => HeatPolicy>>;
}

function levelFrom(text = "warn"): LogLevel {
  const level = LOG_LEVELS.find((known) => known === text);
  if (level !== undefined) return level;
  throw new ThawError("INVALID_ARGUMENT", {
    what: `THAW_LOG is ${JSON.stringify(text)}`,
    why: "There is no such level",
    fix: `Use one of ${LOG_LEVELS.join(", ")}`,
  });
}

function policies(options: Options, make: PolicyMakers): Partial<PlatformOptions> {
  const { maxInstances, memoryBudget, pool, park, parkLoader } = options;
  const ms = (seconds: number | undefined): number | undefined => (seconds === undefined ? undefined : seconds * 1000);
  return {
    ...(maxInstances === undefined ? {} : { maxInstances }),
    ...(memoryBudget === undefined ? {} : { memoryBudgetBytes: memoryBudget }),
    heatPolicy: make.heat[options.heatPolicy ?? "fixed"](),
    policy: make.idle[options.policy ?? "fixed"]({
      keepWarmMs: ms(options.keepWarm),
      keepHibernatedMs: ms(options.keepHibernated),
      keepAliveMs: ms(options.keepAlive),
    }),
    ...(pool === undefined ? {} : { genericHusks: pool }),
    ...(park?.runtime === undefined ? { runtimeHusks: RUNTIME_HUSKS } : {}),
    // Also without --park: functions may have provisioned husks.
    parked: { ...park, ...(parkLoader === undefined ? {} : { loader: parkLoader }) },
  };
}

function cannotGoOn(cause: unknown): ThawError {
  return new ThawError("KEEPER_FAILED", {
    what: "The server cannot go on: its keeper, and with it every instance, has ended",
    why: isThawError(cause) ? (cause.why ?? cause.what) : errorText(cause),
    fix: "Start it again: functions and images are kept; under a supervisor, let it restart on failure",
    cause,
  });
}

/** A check's sentence, as a part of one. */
const withoutStop = (sentence: string): string => sentence.replace(/\.$/, "");

function cannotFreeze({ canBoot, checks }: MachineReport): ThawError {
  const failed = checks.filter(({ ok, required }) => required && !ok);
  return new ThawError("UNSUPPORTED_PLATFORM", {
    what: `Functions cannot ${canBoot ? "be frozen" : "run"} on this machine`,
    why: failed.map(({ name, says }) => `${name}: ${withoutStop(says)}`).join("; "),
    fix: [
      ...failed.flatMap(({ fix }) => (fix === undefined ? [] : withoutStop(fix))),
      ...(canBoot ? ["`thaw serve --boot-only` runs functions without images"] : []),
    ].join("; "),
  });
}
