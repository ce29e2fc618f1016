/**
 * The server is one process with one event loop: whatever holds it holds every request of every function. A client asks a server for its health all the time,
 * which takes it next to nothing, while images of growing size are frozen, thawed, hibernated, woken and heated. What it waited for the longest is the stall.
 */
import { nowMs, sleep } from "../../base/clock.js";
import { errorText } from "../../base/errors.js";
import { HttpConnection } from "../http-connection.js";
import type { FailedRun } from "../interleave.js";
import type { Lab, Section } from "../lab.js";
import { MEMORY_WORKLOADS } from "../memory-workloads.js";
import { type Check, check, exactly, type Measurement } from "../report.js";
import { type Server, startServer } from "../server-under-test.js";
import { significant, type Table } from "../table.js";
import { checkReply, codeDir, HANDLER, WORKLOADS, type Workload } from "../workloads.js";

const ASK_EVERY_MS = 2;
/** The working set of a new image is rehearsed behind the deploy; what an ended instance leaves is packed a second later. */
const SETTLE_MS = 4_000;
const THAWS = 6;
/** Between two thaws: what is done behind an answer belongs to it. */
const REST_MS = 500;
const STALL_MS_MAX = 50;

const MAPPINGS = 32_000;
const manyMappings: Workload = {
  name: "python-mappings",
  language: "python",
  dir: codeDir("python-mappings"),
  handler: HANDLER.python,
  memoryMb: 512,
  event: (seed) => ({ seed }),
  reply: (seed) => ({
    mappings: MAPPINGS,
    seed,
    sum: Array.from({ length: MAPPINGS / 2 }, (_, index) => (index * 2) % 251).reduce((sum, each) => sum + each, 0),
  }),
};

export const stalls: Section = {
  name: "stalls",
  about: "how long the server answers nobody while images of up to 32,000 mappings are made and started",
  msMax: 300_000,
  async run(lab) {
    const server = await startServer(lab, []);
    let observer: Observer | undefined;
    try {
      observer = await Observer.open(server.url);
      const measured: Measurement[] = [];
      for (const workload of [WORKLOADS.helloNode, WORKLOADS.node80, MEMORY_WORKLOADS.big, manyMappings])
        measured.push(...(await observe(lab, server, observer, workload)));
      return { measurements: measured, checks: measured.map(checkOf), tables: [table(measured)] };
    } finally {
      await observer?.close();
      await server.stop();
    }
  },
};

interface Step {
  readonly way: string;
  run(): Promise<void>;
}

async function observe(lab: Lab, server: Server, observer: Observer, workload: Workload): Promise<Measurement[]> {
  const { name, dir, memoryMb } = workload;
  const connection = await HttpConnection.open(server.url);
  const post = async (path: string, seed: number, headers: Readonly<Record<string, string>> = {}): Promise<Buffer> => {
    const { status, body } = await connection.request({
      method: "POST",
      path,
      body: JSON.stringify(workload.event(seed)),
      headers,
    });
    if (status !== 200) throw new Error(`POST ${path}: status ${status}: ${body.toString("utf8", 0, 300)}`);
    return body;
  };
  const control = `/thaw/v1/functions/${name}`;
  const thaw = async (seed: number): Promise<void> => {
    const reply = await post(`/2015-03-31/functions/${name}/invocations`, seed, { "X-Thaw-Prefer": "thaw" });
    checkReply(workload, seed, reply);
    await sleep(REST_MS);
  };
  const thaws = async (from: number): Promise<void> => {
    for (let seed = from; seed < from + THAWS; seed++) await thaw(seed);
  };
  const steps: Step[] = [
    { way: "deploy", run: () => server.deploy(dir, name, ["--memory", String(memoryMb)]).then(() => sleep(SETTLE_MS)) },
    { way: "thaws", run: () => thaws(0) },
    { way: "hibernate", run: () => post(`${control}/hibernate`, 0).then(() => sleep(REST_MS)) },
    { way: "wake", run: () => post(`${control}/wake`, 0).then(() => sleep(REST_MS)) },
    { way: "heat", run: () => post(`${control}/heat?requests=20`, 0).then(() => sleep(SETTLE_MS)) },
    { way: "thaws of the hot image", run: () => thaws(THAWS) },
  ];
  try {
    const measured: Measurement[] = [];
    for (const { way, run } of steps) {
      lab.progress(`${name}: ${way}`);
      observer.take();
      const failures: FailedRun[] = [];
      await run().catch((error: unknown) => failures.push({ round: 1, error: errorText(error) }));
      measured.push({ workload: name, way, unit: "ms", samples: failures.length > 0 ? [] : [observer.take()], failures });
      if (failures.length > 0) break;
    }
    return measured;
  } finally {
    connection.close();
  }
}

const longestOf = ({ samples }: Measurement): number => samples[0] ?? Number.NaN;

function checkOf(measured: Measurement): Check {
  const what = `longest time without an answer: ${measured.way}`;
  return check(measured.workload, what, exactly(longestOf(measured)), "<=", STALL_MS_MAX, "ms");
}

function table(measured: readonly Measurement[]): Table {
  const workloads = [...new Set(measured.map(({ workload }) => workload))];
  const ways = [...new Set(measured.map(({ way }) => way))];
  const cell = (way: string, workload: string): string => {
    const one = measured.find((each) => each.way === way && each.workload === workload);
    return one === undefined ? "" : significant(longestOf(one));
  };
  return {
    title: "How long the server answered nobody",
    subtitle: `longest wait for an answer that takes next to nothing, asked for every ${ASK_EVERY_MS} ms, ms`,
    columns: [{ title: "" }, ...workloads.map((title) => ({ title, align: "right" as const }))],
    rows: ways.map((way) => [way, ...workloads.map((workload) => cell(way, workload))]),
  };
}

/** Asks for the server's health, again and again, and remembers the longest wait. */
class Observer {
  readonly #connection: HttpConnection;
  readonly #asking: Promise<void>;
  #longestMs = 0;
  #askedMs: number | undefined;
  #closed = false;

  private constructor(connection: HttpConnection) {
    this.#connection = connection;
    this.#asking = this.#ask();
    // Told by close.
    this.#asking.catch(() => undefined);
  }

  static async open(url: string): Promise<Observer> {
    return new Observer(await HttpConnection.open(url));
  }

  /** The longest wait since it was asked last, that which goes on included, milliseconds. */
  take(): number {
    const longest = Math.max(this.#longestMs, this.#askedMs === undefined ? 0 : nowMs() - this.#askedMs);
    this.#longestMs = 0;
    return longest;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#asking;
    this.#connection.close();
  }

  async #ask(): Promise<void> {
    while (!this.#closed) {
      this.#askedMs = nowMs();
      const { us } = await this.#connection.request({ method: "GET", path: "/thaw/v1/health" });
      this.#askedMs = undefined;
      this.#longestMs = Math.max(this.#longestMs, us / 1000);
      await sleep(ASK_EVERY_MS);
    }
  }
}
