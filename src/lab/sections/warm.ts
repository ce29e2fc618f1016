/** Warm requests through HTTP: the latency of one client, and how many a second both cores carry, the load generator's share included. */

import type { Lab, Section } from "../lab.js";
import { type LoadResult, loadFromChild } from "../load.js";
import { machineCpuUs } from "../machine.js";
import { check, exactly, type Measurement } from "../report.js";
import { type Server, startServer } from "../server-under-test.js";
import { ms, type Row, significant } from "../table.js";
import { WORKLOADS, type Workload } from "../workloads.js";

const LATENCY_MS_MAX = 0.5;
const PER_SECOND_MIN = 5_000;
/** Clients at once, and so instances: one request at a time in each. */
const CLIENTS = [1, 2, 4, 8, 16];
const LATENCY_REQUESTS = 5_000;
const THROUGHPUT_MS = 4_000;
const THROUGHPUT_REQUESTS_MAX = 200_000;

interface Load {
  readonly clients: number;
  readonly instances: number;
  readonly result: LoadResult;
  /** Busy time of all cores for each request: server, instances, load generator, and whatever else ran. */
  readonly machineUsPerRequest: number;
  /** Requests that found no warm instance while it measured. */
  readonly coldStarts: number;
}

export const warm: Section = {
  name: "warm",
  about: "warm requests through HTTP: latency of one client, requests a second",
  msMax: 180_000,
  async run(lab) {
    const reports = [];
    for (const workload of [WORKLOADS.helloNode, WORKLOADS.helloPython]) reports.push(await measure(lab, workload));
    return {
      measurements: reports.flatMap(({ measurements }) => measurements),
      checks: reports.flatMap(({ checks }) => checks),
      tables: [table(reports.flatMap(({ rows }) => rows))],
    };
  },
};

async function measure(lab: Lab, workload: Workload) {
  lab.progress(`${workload.name}: deploying`);
  const server = await startServer(lab, ["--keep-alive", "900"]);
  try {
    await server.deploy(workload.dir, workload.name);
    const single = await load(server, workload, 1, { requestsMax: LATENCY_REQUESTS, msMax: 20_000 });
    const loads: Load[] = [];
    const skipped: number[] = [];
    for (const clients of CLIENTS) {
      if (lab.deadline.passed) {
        skipped.push(clients);
        continue;
      }
      lab.progress(`${workload.name}: ${clients} clients`);
      loads.push(await load(server, workload, clients, { requestsMax: THROUGHPUT_REQUESTS_MAX, msMax: THROUGHPUT_MS }));
    }
    const best = loads.reduce((most, each) => (each.result.perSecond > most.result.perSecond ? each : most), single);
    const most = `requests a second, ${best.instances} instances`;
    return {
      measurements: [
        measurement(workload, "latency, 1 client", single),
        ...loads.map((each) => measurement(workload, `load, ${each.clients} clients`, each)),
        ...skipped.map((clients) => notMeasured(workload, `load, ${clients} clients`)),
      ],
      checks: [
        check(
          workload.name,
          "warm through HTTP, 1 client, p50",
          exactly(single.result.latencyUs.median / 1000),
          "<=",
          LATENCY_MS_MAX,
          "ms",
        ),
        ...(workload.language === "node"
          ? [check(workload.name, most, exactly(best.result.perSecond), ">=", PER_SECOND_MIN, "/s")]
          : []),
      ],
      rows: [{ heading: workload.name }, row(single, "latency"), ...loads.map((each) => row(each, "throughput"))] as Row[],
    };
  } finally {
    await server.stop();
  }
}

async function load(
  server: Server,
  workload: Workload,
  clients: number,
  limits: { requestsMax: number; msMax: number },
): Promise<Load> {
  const request = {
    method: "POST",
    path: `/2015-03-31/functions/${workload.name}/invocations`,
    body: JSON.stringify(workload.event(1)),
  } as const;
  const options = { url: server.url, request, reply: workload.reply(1), connections: clients, ...limits };
  // Instances for all clients first, so that none is started while it measures.
  const filling = await loadFromChild({ ...options, requestsMax: clients * 20, msMax: 10_000 });
  const before = await server.metrics();
  const busyBefore = machineCpuUs();
  const result = await loadFromChild(options);
  const busyUs = machineCpuUs() - busyBefore;
  const after = await server.metrics();
  const cold = (kind: "boot" | "thaw" | "parked") => after.starts[kind] - before.starts[kind];
  return {
    clients,
    instances: after.instances.idle + after.instances.running,
    result: { ...result, failed: filling.failed + result.failed, failures: [...filling.failures, ...result.failures] },
    machineUsPerRequest: busyUs / result.answered,
    coldStarts: cold("boot") + cold("thaw") + cold("parked"),
  };
}

function measurement(workload: Workload, way: string, { result, instances, machineUsPerRequest, coldStarts }: Load): Measurement {
  return {
    workload: workload.name,
    way,
    unit: "us",
    samples: result.samples,
    failures: result.failures.map((error, round) => ({ round, error })),
    facts: {
      instances,
      perSecond: result.perSecond,
      failed: result.failed,
      coldStarts,
      machineCpuUsPerRequest: machineUsPerRequest,
      generatorCpuMs: result.cpuMs.user + result.cpuMs.system,
    },
  };
}

function notMeasured({ name }: Workload, way: string): Measurement {
  return { workload: name, way, unit: "us", samples: [], failures: [], cutShort: "the section's time was over" };
}

function row({ clients, instances, result, machineUsPerRequest, coldStarts }: Load, what: string): Row {
  const generatorUs = ((result.cpuMs.user + result.cpuMs.system) * 1000) / result.answered;
  return [
    what,
    String(clients),
    String(instances),
    significant(result.perSecond),
    ms(result.latencyUs.median),
    ms(result.latencyUs.p99),
    significant(machineUsPerRequest),
    significant(generatorUs),
    String(coldStarts),
    result.failed === 0 ? "" : { text: `${result.failed} failed`, tone: "bad" },
  ];
}

function table(rows: readonly Row[]) {
  const right = (title: string) => ({ title, align: "right" as const });
  return {
    title: "Warm requests through HTTP",
    subtitle:
      "The load generator is a process of its own on the same machine; CPU: busy time of all cores, from /proc/stat, for each request",
    columns: [
      { title: "" },
      ...["clients", "instances", "requests/s", "p50 ms", "p99 ms", "CPU us", "of it client", "cold"].map(right),
      { title: "" },
    ],
    rows,
  };
}
