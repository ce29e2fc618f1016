/** Starts through HTTP: the same comparison with a real server in a process of its own, timed by the client. */
import { Deadline } from "../bounded.js";
import { HttpConnection } from "../http-connection.js";
import { atRest, type HttpWay, httpArm, warmUp } from "../http-start.js";
import { interleave } from "../interleave.js";
import type { Lab, Section } from "../lab.js";
import { type Check, check, type Measurement } from "../report.js";
import { type Server, startServer } from "../server-under-test.js";
import { seedOf } from "../start-arms.js";
import { type StartResults, startMeasurements, startsTable, timesOf } from "../start-report.js";
import { differenceOfMedians, ratioOfMedians, seededRandom } from "../statistics.js";
import { checkReply, WORKLOADS, type Workload } from "../workloads.js";

const SUBJECTS: readonly { readonly workload: Workload; readonly bootOverThawMin?: number }[] = [
  { workload: WORKLOADS.node80, bootOverThawMin: 30 },
  { workload: WORKLOADS.python40, bootOverThawMin: 30 },
  { workload: WORKLOADS.helloNode },
];
const THAW_MINUS_WARM_MS_MAX = 3.0;

const WAYS: readonly HttpWay[] = [
  { name: "boot", kind: "boot", prefer: "boot;dispose" },
  { name: "boot again (A/A)", kind: "boot", prefer: "boot;dispose" },
  { name: "thaw splice", kind: "thaw", loader: "splice", prefer: "thaw;loader=splice;dispose" },
  { name: "thaw splice again (A/A)", kind: "thaw", loader: "splice", prefer: "thaw;loader=splice;dispose" },
  { name: "thaw lazy", kind: "thaw", loader: "lazy", prefer: "thaw;loader=lazy;dispose" },
  { name: "thaw eager", kind: "thaw", loader: "eager", prefer: "thaw;loader=eager;dispose" },
  { name: "thaw splice, husk on the path", kind: "thaw", loader: "splice", prefer: "thaw;loader=splice;husk=fresh;dispose" },
  { name: "parked: prefaulted", kind: "parked", prefer: "parked;dispose" },
  { name: "reuse, after a pause", kind: "reuse", prefer: "reuse" },
  { name: "reuse", kind: "reuse", prefer: "reuse", justBefore: true },
];
/** Husks for every way at hand; instances kept idle for longer than the section lasts. */
const SERVE = ["--pool", "2", "--park", "runtime=2", "--park", "prefaulted=2", "--keep-alive", "900"];

export const http: Section = {
  name: "http",
  about: "every way of starting, through HTTP",
  msMax: 300_000,
  async run(lab) {
    const measurements: Measurement[] = [];
    const checks: Check[] = [];
    const results: StartResults[] = [];
    for (const [index, { workload, bootOverThawMin }] of SUBJECTS.entries()) {
      const deadline = new Deadline(lab.deadline.remainingMs / (SUBJECTS.length - index));
      // One function for each server: the husks parked for another would share its memory and its refills.
      const server = await startServer(lab, SERVE);
      try {
        const result = await measure(lab, server, workload, deadline);
        results.push(result);
        const { engine } = await server.metrics();
        const facts = { husksMade: engine.husksMade, husksMsTotal: Math.round(engine.husksUs / 1000) };
        measurements.push(...startMeasurements(result, facts));
        checks.push(...compare(result, bootOverThawMin));
      } finally {
        await server.stop();
      }
    }
    const subtitle =
      "Client's request to client's response in ms, one kept-alive connection; the wait for a pool left out and shown";
    return { measurements, checks, tables: [startsTable("Starts through HTTP", subtitle, results, "reuse", "pool wait")] };
  },
};

async function measure(lab: Lab, server: Server, workload: Workload, deadline: Deadline): Promise<StartResults> {
  lab.progress(`${workload.name}: deploying`);
  await server.deploy(workload.dir, workload.name, ["--memory", String(workload.memoryMb), "--timeout", "20"]);
  const connection = await HttpConnection.open(server.url);
  try {
    await warmUp(connection, workload.name, JSON.stringify(workload.event(1)));
    const rest = await atRest(connection);
    const arms = WAYS.map((way) =>
      httpArm(connection, workload.name, way, {
        rest,
        body: (round) => JSON.stringify(workload.event(seedOf(round))),
        verify: (round, payload) => checkReply(workload, seedOf(round), payload),
      }),
    );
    const onRound = (round: number, rounds: number) => lab.progress(`${workload.name}: round ${round + 1} of ${rounds}`);
    return {
      workload: workload.name,
      arms: await interleave(arms, { rounds: lab.rounds, deadline, onRound, shuffle: seededRandom(workload.name.length) }),
    };
  } finally {
    connection.close();
  }
}

function compare(result: StartResults, bootOverThawMin: number | undefined): Check[] {
  const thaw = timesOf(result, "thaw splice");
  const { value, low, high } = differenceOfMedians(thaw, timesOf(result, "reuse"));
  const minusWarm = { value: value / 1000, low: low / 1000, high: high / 1000 };
  return [
    ...(bootOverThawMin === undefined
      ? []
      : [
          check(
            result.workload,
            "boot / thaw through HTTP",
            ratioOfMedians(timesOf(result, "boot"), thaw),
            ">=",
            bootOverThawMin,
            "",
          ),
        ]),
    check(result.workload, "thaw minus warm through HTTP", minusWarm, "<=", THAW_MINUS_WARM_MS_MAX, "ms"),
  ];
}
