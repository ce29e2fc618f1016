/** From cold starts to measurements, promises and a table. */
import { PAGE_BYTES } from "../base/units.js";
import type { ColdSample } from "./cold-start.js";
import type { ArmResult } from "./interleave.js";
import type { MemoryWorkload } from "./memory-workloads.js";
import type { Bandwidth } from "./page-cache.js";
import { type Check, check, type Measurement } from "./report.js";
import { mainPhases, phaseColumns } from "./start-report.js";
import { differenceOfMedians, geometricMeanOfRatios, median, noiseOf, quantile, ratioOfMedians } from "./statistics.js";
import { failedCell, ms, type Row, significant, type Table } from "./table.js";

/** The device, as measured in the same run. */
export interface Disk extends Bandwidth {
  readonly readAheadKb: number;
}

/** All arms of one function. */
export interface ColdResult {
  readonly workload: Pick<MemoryWorkload, "name" | "about" | "unstable">;
  readonly libraries: readonly string[];
  readonly arms: readonly ArmResult<ColdSample>[];
  readonly warmUs: readonly number[];
  /** What the recorded set lets a start read from the disk: parts of image, interpreter and libraries. NaN when none was recorded. */
  readonly workingSetPages: number;
}

const GEOMETRIC_MEAN_MIN = 4;
const DISK_FACTOR = 2;
/** Promised for the smallest functions, milliseconds. */
const HELLO = /^hello-/;
const HELLO_IMAGE_COLD_MS_MAX = 8;
const HELLO_BOTH_COLD_MS_MAX = 25;
const OTHERS = ["lazy", "eager", "reap"] as const;

function armTimes({ arms }: Pick<ColdResult, "arms">, name: string): number[] {
  return arms.find((arm) => arm.name === name)?.samples.map(({ us }) => us) ?? [];
}

/** What the disk alone would take for the working set, at the faster of the two ways of reading: the stricter bound. */
export function diskUs(workingSetPages: number, disk: Bandwidth): number {
  const bytesPerSecond = Math.max(disk.directBytesPerSecond, disk.bufferedBytesPerSecond);
  return (workingSetPages * PAGE_BYTES * 1e6) / bytesPerSecond;
}

/** lazy-4k / splice over all functions whose requests touch the same pages. */
export function sumUp(results: readonly ColdResult[]): Check {
  const stable = results.filter(({ workload }) => workload.unstable !== true);
  const pairs = stable.map((each) => ({
    numerator: armTimes(each, "thaw lazy-4k"),
    denominator: armTimes(each, "thaw splice"),
  }));
  const what = `geometric mean of lazy-4k / splice over ${stable.length} functions, cold disk`;
  return check("all", what, geometricMeanOfRatios(pairs), ">=", GEOMETRIC_MEAN_MIN, "");
}

export function coldChecks(result: ColdResult, disk: Disk): Check[] {
  const { name } = result.workload;
  const times = (way: string) => armTimes(result, way);
  const splice = times("thaw splice");
  const noise = noiseOf(splice, times("thaw splice again (A/A)"));
  const inMs = (us: number) => us / 1000;
  const { value, low, high } = differenceOfMedians(splice, result.warmUs);
  const minusWarm = { value: inMs(value), low: inMs(low), high: inMs(high) };
  const exactly = (us: number) => ({ value: inMs(us), low: Number.NaN, high: Number.NaN });
  const hello = HELLO.test(name)
    ? [
        check(name, "image and interpreter cold, p50", exactly(median(splice)), "<=", HELLO_BOTH_COLD_MS_MAX, "ms"),
        check(
          name,
          "image cold, interpreter cached, p50",
          exactly(median(times("thaw splice, interpreter cached"))),
          "<=",
          HELLO_IMAGE_COLD_MS_MAX,
          "ms",
        ),
      ]
    : [];
  return [
    ...OTHERS.map((other) =>
      check(
        name,
        `cold: splice / ${other}, at most the noise of A/A`,
        ratioOfMedians(splice, times(`thaw ${other}`)),
        "<=",
        noise,
        "",
      ),
    ),
    check(
      name,
      "cold: splice minus warm, at most 2 x working set / bandwidth",
      minusWarm,
      "<=",
      inMs(DISK_FACTOR * diskUs(result.workingSetPages, disk)),
      "ms",
    ),
    ...hello,
  ];
}

export function coldMeasurements(result: ColdResult, disk: Disk): Measurement[] {
  return result.arms.map(({ name, samples, failures, cutShort }) => {
    const middle = (read: (sample: ColdSample) => number) => median(counted(samples.map(read)));
    return {
      workload: result.workload.name,
      way: name,
      unit: "us",
      samples: samples.map(({ us }) => us),
      phases: phaseColumns(samples),
      failures,
      ...(cutShort === undefined ? {} : { cutShort }),
      facts: {
        warmUsMedian: median(result.warmUs),
        workingSetPages: result.workingSetPages,
        libraries: result.libraries.join(", "),
        imagePagesMedian: middle(({ imagePages }) => imagePages),
        interpreterPagesMedian: middle(({ interpreterPages }) => interpreterPages),
        blockedUsMedian: middle(({ blockedUs }) => blockedUs),
        majorFaultsMedian: middle(({ majorFaults }) => majorFaults),
        faultsOutsideMedian: middle(({ faultsOutside }) => faultsOutside),
        ...disk,
      },
    };
  });
}

export function coldTable(results: readonly ColdResult[], disk: Disk): Table {
  const right = (title: string) => ({ title, align: "right" as const });
  const rows = results.flatMap((result): Row[] => {
    const { workload, libraries, workingSetPages, warmUs } = result;
    const lazy4k = armTimes(result, "thaw lazy-4k");
    const heading = [
      `${workload.name}: ${[workload.about, ...libraries].join(", ")}`,
      `working set ${significant(workingSetPages)} pages, ${ms(diskUs(workingSetPages, disk))} ms of disk; warm ${ms(median(warmUs))} ms`,
      ...(workload.unstable === true ? ["not in the mean"] : []),
    ].join("; ");
    return [{ heading }, ...result.arms.map((arm) => armRow(arm, workingSetPages, lazy4k))];
  });
  const gb = (bytesPerSecond: number) => significant(bytesPerSecond / 1e9);
  return {
    title: "Starts from a cold disk",
    subtitle: `Engine, request in hand to response in hand, ms, interleaved, generic husk; device: ${gb(disk.directBytesPerSecond)} GB/s O_DIRECT, ${gb(disk.bufferedBytesPerSecond)} GB/s buffered, read_ahead_kb ${disk.readAheadKb}`,
    columns: [
      { title: "start" },
      ...[
        "median ms",
        "p99",
        "min",
        "max",
        "lazy-4k/this",
        "image pages",
        "interpreter",
        "outside",
        "faults outside",
        "major",
        "blocked ms",
        "n",
      ].map(right),
      { title: "" },
      { title: "main phases, ms" },
    ],
    rows,
    notes: [
      "Cold: no other instance, a private copy of the interpreter, 0 pages of image and interpreter in the page cache, counted (cachestat(2), else mincore(2)) before each sample; a sample whose count is not 0 is a failed run.",
      "Shared with the machine and cached: libc, libm, libstdc++ and their kin, inodes, directory entries, extents. Generic husks map nothing of an interpreter.",
      "image pages, interpreter: in the page cache after the answer, 4 KiB each; outside: of them, beyond the recorded working set; faults outside: counted by the engine.",
      "blocked: the function's threads waiting for block devices, summed (delay accounting); what a pager waits for is not in it. lazy: the kernel's read-ahead; lazy-4k: MADV_RANDOM.",
      "Noise: the end, farther from 1, of the 95 % bootstrap interval of splice / splice again.",
    ],
  };
}

/** Without what was not counted. */
function counted(values: readonly number[]): number[] {
  return values.filter((value) => !Number.isNaN(value));
}

function armRow({ name, samples, failures }: ArmResult<ColdSample>, workingSetPages: number, lazy4k: readonly number[]): Row {
  const of = (read: (sample: ColdSample) => number) => counted(samples.map(read));
  const us = of((sample) => sample.us);
  const pages = of(({ imagePages, interpreterPages }) => imagePages + interpreterPages);
  return [
    name,
    ms(median(us)),
    ms(quantile(us, 0.99)),
    ms(quantile(us, 0)),
    ms(quantile(us, 1)),
    `${significant(ratioOfMedians(lazy4k, us).value)}x`,
    significant(median(of(({ imagePages }) => imagePages))),
    significant(median(of(({ interpreterPages }) => interpreterPages))),
    significant(Math.max(0, median(pages) - workingSetPages)),
    significant(median(of(({ faultsOutside }) => faultsOutside))),
    significant(median(of(({ majorFaults }) => majorFaults))),
    ms(median(of(({ blockedUs }) => blockedUs))),
    String(samples.length),
    failedCell(failures),
    mainPhases(samples),
  ];
}
