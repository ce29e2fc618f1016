/** From hibernations and wakes to measurements, promises and tables. */
import type { MachineShare } from "./crowd.js";
import type { Footprint, Left } from "./hibernate-footprint.js";
import { WAKE_ARMS, type WakeResult } from "./hibernate-wake.js";
import { type Check, check, exactly, type Measurement } from "./report.js";
import { differenceOfMedians, median, noiseOf, quantile, ratioOfMedians } from "./statistics.js";
import { failedCell, megabytes, ms, type Row, significant, type Table } from "./table.js";

const LEFT_BYTES_MAX = 1.2e6;
const STOPPED_MS_MAX = 20;
const WAKE_CACHED_MS_MAX = 2;
const WAKE_COLD_MS_MAX = 8;
const KINDS = { boot: "booted", thaw: "thawed" } as const;

const AGAIN = " after six wakes";

const whole = ({ cgroupBytes }: Left) => cgroupBytes;
const label = ({ workload, kind }: Pick<Footprint, "workload" | "kind">) => `${workload}, ${KINDS[kind]}`;
const middle = (all: readonly Left[], read: (one: Left) => number) => median(all.map(read));
const stops = ({ first, second }: Footprint) => [...first, ...second].map(({ stoppedMs }) => stoppedMs);

function times({ arms }: WakeResult, name: string): number[] {
  return arms.find((arm) => arm.name === name)?.samples.map(({ us }) => us) ?? [];
}

/** `promised`: the worker whose footprint is promised, when it was booted. */
export function hibernateChecks(feet: readonly Footprint[], woken: readonly WakeResult[], promised: string): Check[] {
  return [
    ...feet.filter(({ workload, kind }) => workload === promised && kind === "boot").flatMap(leftChecks),
    ...feet.flatMap(stopChecks),
    ...woken.filter(({ kind }) => kind === "boot").flatMap(wakeChecks),
  ];
}

function leftChecks(foot: Footprint): Check[] {
  const mb = (bytes: number) => exactly(bytes / 1e6);
  const bound = LEFT_BYTES_MAX / 1e6;
  const left = (when: string, all: readonly Left[], machine: MachineShare) => [
    check(label(foot), `left when hibernated${when}, by its control group, p50`, mb(middle(all, whole)), "<=", bound, "MB"),
    check(label(foot), `left when hibernated${when}, by what the machine has left`, mb(machine.bytes), "<=", bound, "MB"),
  ];
  return [...left("", foot.hibernated, foot.machine), ...left(AGAIN, foot.kept, foot.machineKept)];
}

function stopChecks(foot: Footprint): Check[] {
  const stopped = stops(foot);
  const what = `stopped while deflating`;
  return [
    check(label(foot), `${what}, p50 of ${stopped.length}`, exactly(median(stopped)), "<=", STOPPED_MS_MAX, "ms"),
    check(label(foot), `${what}, worst of ${stopped.length}`, exactly(quantile(stopped, 1)), "<=", STOPPED_MS_MAX, "ms"),
  ];
}

function wakeChecks(result: WakeResult): Check[] {
  const warm = times(result, WAKE_ARMS.warm);
  const over = (name: string) => {
    const { value, low, high } = differenceOfMedians(times(result, name), warm);
    return { value: value / 1000, low: low / 1000, high: high / 1000 };
  };
  const paused = times(result, WAKE_ARMS.paused);
  const noise = noiseOf(paused, times(result, WAKE_ARMS.pausedAgain));
  const woken = ratioOfMedians(times(result, WAKE_ARMS.woken), paused);
  return [
    check(label(result), "wake from the page cache, minus warm", over(WAKE_ARMS.cached), "<=", WAKE_CACHED_MS_MAX, "ms"),
    check(label(result), "wake from a cold disk, minus warm", over(WAKE_ARMS.cold), "<=", WAKE_COLD_MS_MAX, "ms"),
    check(label(result), "woken / warm after as long a pause, at most the noise of A/A", woken, "<=", noise, ""),
  ];
}

export function hibernateMeasurements(feet: readonly Footprint[], woken: readonly WakeResult[]): Measurement[] {
  return [
    ...feet.flatMap((foot): Measurement[] => [
      {
        workload: label(foot),
        way: "hibernate: stopped",
        unit: "ms",
        samples: stops(foot),
        failures: foot.failures,
        facts: {
          machineBytesEach: foot.machine.bytes,
          machineDriftBytes: foot.machine.driftBytes,
          machineBytesEachAgain: foot.machineKept.bytes,
          wholeMsMedian: median(foot.first.map(({ totalMs }) => totalMs)),
          hygieneMsMedian: median(foot.first.map(({ hygieneMs }) => hygieneMs)),
          writtenPagesFirst: median(foot.first.map(({ writtenPages }) => writtenPages)),
          writtenPagesSecond: median(foot.second.map(({ writtenPages }) => writtenPages)),
        },
      },
      ...(["warm", "hibernated", "woken", "kept"] as const).map((state) => ({
        workload: label(foot),
        way: `memory, ${state === "kept" ? `hibernated${AGAIN}` : state}, by control group`,
        unit: "bytes" as const,
        samples: foot[state].map(({ cgroupBytes }) => cgroupBytes),
        failures: [],
      })),
    ]),
    ...woken.flatMap((result) =>
      result.arms.map(
        ({ name, samples, failures, cutShort }): Measurement => ({
          workload: label(result),
          way: name,
          unit: "us",
          samples: samples.map(({ us }) => us),
          failures,
          ...(cutShort === undefined ? {} : { cutShort }),
          facts: { prefetchedPagesMedian: median(samples.map(({ prefetchedPages }) => prefetchedPages)) },
        }),
      ),
    ),
  ];
}

export function hibernateTables(feet: readonly Footprint[], woken: readonly WakeResult[]): Table[] {
  return [footprintTable(feet), wakeTable(woken)];
}

const right = (title: string) => ({ title, align: "right" as const });

function footprintTable(feet: readonly Footprint[]): Table {
  const row = (state: string, all: readonly Left[], warm: readonly Left[], machine: string): Row => {
    return [
      state,
      megabytes(middle(all, ({ privateBytes }) => privateBytes)),
      megabytes(middle(all, ({ pss }) => pss)),
      significant(middle(all, whole) / 1e6),
      significant(middle(all, ({ kernelBytes }) => kernelBytes) / 1e6),
      megabytes(middle(all, ({ cgroupCache }) => cgroupCache)),
      machine,
      `${significant((100 * middle(all, whole)) / middle(warm, whole))} %`,
    ];
  };
  const rows = feet.flatMap((foot): Row[] => {
    const of = (read: (report: Footprint["first"][number]) => number, reports = foot.first) =>
      significant(median(reports.map(read)));
    const stopped = stops(foot);
    return [
      {
        heading: `${label(foot)}: stopped ${significant(median(stopped))} ms p50, ${significant(quantile(stopped, 1))} worst of ${stopped.length}; hygiene ${of(({ hygieneMs }) => hygieneMs)}, whole ${of(({ totalMs }) => totalMs)}; pages written ${of(({ writtenPages }) => writtenPages)}, then ${of(({ writtenPages }) => writtenPages, foot.second)}`,
      },
      row("warm", foot.warm, foot.warm, ""),
      row("hibernated", foot.hibernated, foot.warm, significant(foot.machine.bytes / 1e6)),
      row("woken", foot.woken, foot.warm, ""),
      row(`hibernated${AGAIN}`, foot.kept, foot.warm, significant(foot.machineKept.bytes / 1e6)),
    ];
  });
  return {
    title: "Memory of hibernated instances",
    subtitle:
      "40 at once, medians of each, MB; woken: after one request; after six wakes: with what each wake writes kept in memory",
    columns: [{ title: "" }, ...["private", "PSS", "cgroup", "of it kernel", "page cache", "machine", "of warm"].map(right)],
    rows,
    notes: [
      "cgroup: all that the sandbox's memory group is charged (processes, page tables, stacks, sockets), page cache of files apart; machine: what MemAvailable shows for each, when it did not move by itself.",
      "The paper's woken containers hold 28 to 90 % of the warm memory (Hibernate Container, 2023, §5).",
    ],
  };
}

function wakeTable(woken: readonly WakeResult[]): Table {
  const rows = woken.flatMap((result): Row[] => {
    const warm = median(times(result, WAKE_ARMS.warm));
    return [
      { heading: label(result) },
      ...result.arms.map(({ name, samples, failures }): Row => {
        const us = samples.map((sample) => sample.us);
        return [
          name,
          ms(median(us)),
          ms(quantile(us, 0.99)),
          ms(quantile(us, 0)),
          ms(quantile(us, 1)),
          ms(median(us) - warm),
          significant(median(samples.map(({ prefetchedPages }) => prefetchedPages))),
          String(samples.length),
          failedCell(failures),
        ];
      }),
    ];
  });
  return {
    title: "Waking",
    subtitle: "Request in hand to response in hand at the engine, ms, interleaved",
    columns: [{ title: "" }, ...["median ms", "p99", "min", "max", "minus warm", "read ahead", "n"].map(right), { title: "" }],
    rows,
    notes: [
      "Page cache: everything that its memory files hold was read just before. Cold disk: of its memory files, the image and the private interpreter at most 256 pages were cached, those that the hibernated process itself maps, counted before each sample.",
      "Warm: an instance that never was hibernated, third time the same event, behind twenty others; with a pause before the last three as long as a hibernation takes, it is what a woken one is compared with. Another event touches pages that nobody has touched since the wake.",
    ],
  };
}
