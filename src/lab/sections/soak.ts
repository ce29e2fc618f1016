/**
 * Two thousand thaws in a row, each with one request of the mixed workload, Node and Python in turn. Counts wrong replies,
 * and looks at what the machine holds at the 100th and the last: what grows with the number of starts is a leak.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { sleep } from "../../base/clock.js";
import { errorText } from "../../base/errors.js";
import type { Engine, Image } from "../../engine/types.js";
import { within } from "../bounded.js";
import { withEngine } from "../engine-under-test.js";
import type { FailedRun } from "../interleave.js";
import type { Lab, Section } from "../lab.js";
import { readUsage, type Usage } from "../machine.js";
import { MIXED, MixedChecker, OPERATIONS, type Operation } from "../mixed.js";
import { type Check, check, exactly, type Measurement } from "../report.js";
import { megabytes, type Row } from "../table.js";
import { specOf } from "../workloads.js";

const THAWS = 2_000;
const FIRST_LOOK = 100;
const LOOK_EVERY = 500;
const RUN_MS_MAX = 30_000;
const FAILURES_MAX = 50;
const HUSKS_READY = 2;
/** Husks whose making was interrupted, and processes not yet reaped, settle before a look. */
const SETTLE_MS = 400;

interface Look {
  readonly thaws: number;
  readonly usage: Usage;
}

/** How much each figure may differ between the first and the last look. Not zero where the machine breathes by itself. */
const SLACK: Readonly<Record<keyof Usage, number>> = {
  processes: 0,
  machineProcesses: 8,
  serverBytes: 32e6,
  usedBytes: 100e6,
  kernelBytes: 24e6,
  descriptors: 4,
  mounts: 0,
  cgroups: 4,
};

const NAMES: Readonly<Record<keyof Usage, string>> = {
  processes: "our processes",
  machineProcesses: "all processes",
  serverBytes: "server MB",
  usedBytes: "machine MB",
  kernelBytes: "kernel MB",
  descriptors: "descriptors",
  mounts: "mounts",
  cgroups: "cgroups",
};
const FIGURES = Object.keys(NAMES) as (keyof Usage)[];

export const soak: Section = {
  name: "soak",
  about: `${THAWS} thaws in a row with mixed requests: wrong replies, leaks`,
  msMax: 420_000,
  run: (lab) => withEngine(lab, (engine) => run(lab, engine)),
};

async function run(lab: Lab, engine: Engine) {
  const images: Image[] = [];
  for (const mixed of MIXED) {
    lab.progress(`${mixed.name}: making its image`);
    images.push(await makeMixedImage(engine, mixed));
  }
  engine.pool({ generic: HUSKS_READY });
  for (const image of images) engine.park(image, "runtime", HUSKS_READY);

  const checker = new MixedChecker();
  const failures: FailedRun[] = [];
  const startUs: number[] = [];
  const looks: Look[] = [];
  let thaws = 0;
  while (thaws < THAWS && !lab.deadline.passed && failures.length < FAILURES_MAX) {
    const image = images[thaws % images.length];
    const op = OPERATIONS[Math.floor(thaws / images.length) % OPERATIONS.length];
    if (image === undefined || op === undefined) throw new Error("bug: an index out of range");
    const seed = thaws;
    thaws += 1;
    try {
      startUs.push(await within(thawAndCheck(engine, image, op, seed, checker), RUN_MS_MAX, `${op} in ${image.spec.name}`));
    } catch (error) {
      failures.push({ round: seed, error: `${op} in ${image.spec.name}: ${errorText(error)}` });
    }
    if (thaws % 20 === 0) lab.progress(`${thaws} of ${THAWS} thaws, ${failures.length} failed`);
    if (thaws === FIRST_LOOK || thaws % LOOK_EVERY === 0 || thaws === THAWS) looks.push(await look(engine, thaws));
  }
  if (looks.at(-1)?.thaws !== thaws) looks.push(await look(engine, thaws));
  const measurement: Measurement = {
    workload: "mixed",
    way: "thaw splice",
    unit: "us",
    samples: startUs,
    failures,
    ...(thaws < THAWS ? { cutShort: `${thaws} of ${THAWS} thaws: ${failures.length} failed, or the time was over` } : {}),
    facts: Object.fromEntries(looks.flatMap((each) => FIGURES.map((name) => [`${name}At${each.thaws}`, each.usage[name]]))),
  };
  return { measurements: [measurement], checks: compare(looks, failures.length), tables: [table(looks, failures.length)] };
}

/** Frozen after one request of each kind, so that what each of them opens and starts is part of the image. */
async function makeMixedImage(engine: Engine, mixed: (typeof MIXED)[number]): Promise<Image> {
  const instance = await engine.boot(specOf(mixed, engine.runtimes));
  try {
    const checker = new MixedChecker();
    for (const [index, op] of OPERATIONS.entries()) {
      const { payload } = await instance.invoke(JSON.stringify({ op, seed: index }));
      const problem = checker.check(op, index, index + 1, payload.toString(), Date.now());
      if (problem !== undefined) throw new Error(`${mixed.name} is wrong before it was ever frozen: ${problem}`);
    }
    return await instance.freeze({ then: "end" });
  } finally {
    await instance.dispose();
  }
}

async function thawAndCheck(engine: Engine, image: Image, op: Operation, seed: number, checker: MixedChecker): Promise<number> {
  const instance = await engine.thaw(image, { waitMs: 2_000 });
  try {
    const { payload } = await instance.invoke(JSON.stringify({ op, seed }));
    const problem = checker.check(op, seed, image.heat + 1, payload.toString(), Date.now());
    if (problem !== undefined) throw new Error(`wrong reply: ${problem}`);
    return instance.start.us;
  } finally {
    await instance.dispose();
  }
}

async function look(engine: Engine, thaws: number): Promise<Look> {
  await engine.poolsFull(20_000);
  await sleep(SETTLE_MS);
  // Garbage that was not collected yet is no leak.
  collectGarbage();
  return { thaws, usage: readUsage() };
}

function compare(looks: readonly Look[], wrong: number): Check[] {
  const first = looks[0];
  const last = looks.at(-1);
  const growth = (name: keyof Usage) =>
    first === undefined || last === undefined || first === last ? Number.NaN : last.usage[name] - first.usage[name];
  return [
    check("mixed", "failed thaws and wrong replies", exactly(last?.thaws === THAWS ? wrong : Number.NaN), "=", 0, ""),
    ...FIGURES.map((name) => {
      const scale = name.endsWith("Bytes") ? 1e6 : 1;
      const unit = scale === 1 ? "" : "MB";
      const what = `growth of ${NAMES[name].replace(" MB", "'s memory")}`;
      return check("mixed", what, exactly(growth(name) / scale), "<=", SLACK[name] / scale, unit);
    }),
  ];
}

function table(looks: readonly Look[], wrong: number) {
  const cell = (name: keyof Usage, value: number) => (name.endsWith("Bytes") ? megabytes(value) : String(value));
  const rows = looks.map(({ thaws, usage }): Row => [String(thaws), ...FIGURES.map((name) => cell(name, usage[name]))]);
  return {
    title: "Soak: mixed requests, each in a fresh thaw",
    subtitle: "Pools full at each look; machine: memory neither free nor reclaimable; kernel: slab, stacks, page tables",
    columns: ["after", ...FIGURES.map((name) => NAMES[name])].map((title) => ({ title, align: "right" as const })),
    rows,
    notes: [`${wrong} failed thaws or wrong replies`],
  };
}

/** V8's collector, which is reachable only through a flag. */
function collectGarbage(): void {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
}
