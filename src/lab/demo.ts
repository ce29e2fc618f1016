/**
 * `npm run demo`: starts a server on an ephemeral port with a data directory of its own, deploys three functions,
 * starts each in every way, prints one table, and leaves nothing behind: on success, on failure and on Ctrl-C. Exit
 * code 0 only when every start succeeded and was what it claims to be.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { cpus, release } from "node:os";
import { join } from "node:path";
import { errorText } from "../base/errors.js";
import type { TraceHeader } from "../platform/start-header.js";
import { Cleanup, cleanUpOnSignals, Deadline, within } from "./bounded.js";
import { type DemoResult, demoTable } from "./demo-table.js";
import { PACKAGE_ROOT, scratchDir } from "./environment.js";
import { HttpConnection } from "./http-connection.js";
import { atRest, type HttpWay, hibernate, httpArm, startOverHttp, warmUp } from "./http-start.js";
import { interleave } from "./interleave.js";
import { Progress } from "./progress.js";
import { type Server, startServer } from "./server-under-test.js";
import { renderTable, wantsColour } from "./table.js";

interface DemoFunction {
  readonly name: string;
  readonly about: string;
  readonly event: string;
  /** What a right reply contains. */
  readonly expect: RegExp;
}

const FUNCTIONS: readonly DemoFunction[] = [
  { name: "hello", about: "Node, hello world", event: '{"name":"demo"}', expect: /"Hello, demo!"/ },
  { name: "hello-python", about: "Python, hello world", event: '{"name":"demo"}', expect: /"Hello, demo!"/ },
  { name: "report", about: "Node, a year of orders in memory", event: '{"customer":17}', expect: /"revenueCents":\d+/ },
];

const WAYS: readonly HttpWay[] = [
  { name: "boot", kind: "boot", prefer: "boot;dispose" },
  { name: "thaw eager", kind: "thaw", loader: "eager", prefer: "thaw;loader=eager;dispose" },
  { name: "thaw lazy", kind: "thaw", loader: "lazy", prefer: "thaw;loader=lazy;dispose" },
  { name: "thaw splice", kind: "thaw", loader: "splice", prefer: "thaw;loader=splice;dispose" },
  { name: "parked", kind: "parked", prefer: "parked;dispose" },
  { name: "wake, hibernated", kind: "wake", prefer: "wake", hibernated: true },
  { name: "reuse", kind: "reuse", prefer: "reuse", justBefore: true },
];
const SERVE = ["--pool", "2", "--park", "runtime=2", "--park", "prefaulted=1", "--keep-alive", "300"];

const RUNS = 8;
const TRACED_RUNS = 3;
/** Of the whole: what has not been measured by then is missing, and that is a failure. A machine that does other work may need more. */
const DEADLINE_MS = Number(process.env["THAW_DEMO_SECONDS"] ?? 55) * 1000;

const NEXT = `Next, by hand:
  npx thaw serve --data ./data --port 9470          the server, in this terminal
  npx thaw deploy examples/hello --name hello --wait     in another one
  npx thaw invoke hello --payload '{"name":"world"}'
  npm run bench -- starts                           the same comparison, with intervals, at the engine
`;

const progress = new Progress(process.stderr);
const cleanup = new Cleanup();
cleanUpOnSignals(cleanup, say);
process.exitCode = await main();

async function main(): Promise<number> {
  const deadline = new Deadline(DEADLINE_MS);
  const problems: string[] = [];
  try {
    const results = await within(measureAll(deadline), DEADLINE_MS + 10_000, "the demo");
    progress.clear();
    const machine = `Linux ${release()}, ${cpus().length} x ${cpus()[0]?.model.trim() ?? "unknown CPU"}, Node ${process.version}`;
    process.stdout.write(`\n${renderTable(demoTable(results, RUNS, machine), wantsColour(process.stdout))}\n`);
    for (const { heading, arms } of results) {
      for (const { name, failures, cutShort } of arms) {
        for (const { round, error } of failures) problems.push(`${heading}, ${name}, start ${round}: ${error}`);
        if (cutShort !== undefined) problems.push(`${heading}, ${name}: ${cutShort}`);
      }
    }
  } catch (error) {
    problems.push(errorText(error));
  }
  progress.step("cleaning up");
  problems.push(...(await cleanup.run()));
  progress.clear();
  for (const problem of problems) say(`FAILED: ${problem}`);
  if (problems.length > 0) {
    say("\n`npx thaw doctor` says what works on this machine and what does not.");
    return 1;
  }
  process.stdout.write(NEXT);
  return 0;
}

async function measureAll(deadline: Deadline): Promise<DemoResult[]> {
  progress.step("starting a server");
  const root = mkdtempSync(join(scratchDir(), "thaw-demo-"));
  cleanup.add("removing the data directory", () => rmSync(root, { recursive: true, force: true }));
  const server = await startServer({ cleanup, makeDir: (name) => mkdtempSync(join(root, `${name}-`)) }, SERVE);
  for (const { name } of FUNCTIONS) {
    progress.step(`deploying ${name} and making its image`);
    await server.deploy(join(PACKAGE_ROOT, "examples", name), name);
  }
  const results: DemoResult[] = [];
  for (const [index, each] of FUNCTIONS.entries()) {
    progress.step(`starting ${each.name} in every way`);
    const share = new Deadline(deadline.remainingMs / (FUNCTIONS.length - index));
    results.push(await measure(server, each, share));
  }
  await server.stop();
  return results;
}

async function measure(server: Server, { name, about, event, expect }: DemoFunction, deadline: Deadline): Promise<DemoResult> {
  const connection = await HttpConnection.open(server.url);
  try {
    await warmUp(connection, name, event);
    const verify = (_round: number, payload: Buffer) => {
      if (!expect.test(payload.toString())) throw new Error(`wrong reply: ${payload.toString("utf8", 0, 200)}`);
    };
    const rest = await atRest(connection);
    const arms = WAYS.map((way) => httpArm(connection, name, way, { body: () => event, verify, rest }));
    const onRound = (round: number, rounds: number) => progress.detail(`round ${round + 1} of ${rounds}`);
    const timed = await interleave(arms, { rounds: RUNS, deadline, onRound });
    // A run that was abandoned still has the connection.
    if (deadline.passed)
      throw new Error(
        `${name}: ${Math.round(deadline.totalMs / 1000)} s were over before all its starts were (THAW_DEMO_SECONDS)`,
      );

    const traces = new Map<string, TraceHeader[]>();
    // One that took too long still has the connection; what failed is told, and the rest of the table with it.
    const whole = timed.every(({ failures }) => failures.length === 0);
    for (const way of whole ? WAYS : []) {
      const list: TraceHeader[] = [];
      for (let run = 0; run < TRACED_RUNS; run++) {
        progress.detail(`looking at pages and phases of ${way.name}`);
        if (way.hibernated === true) await hibernate(connection, name);
        const { trace } = await startOverHttp(connection, name, way, event, true);
        if (trace?.start === undefined) throw new Error(`${way.name} of ${name}: asked for a trace, and there was none`);
        list.push(trace);
      }
      traces.set(way.name, list);
    }
    return { heading: `${name} (${about})`, arms: timed, traces };
  } finally {
    connection.close();
  }
}

function say(text: string): void {
  progress.clear();
  process.stderr.write(`${text}\n`);
}
