/** The table of the demo: for each function, by each kind of start, time, phases, pages by source, memory. */
import type { TraceHeader } from "../platform/start-header.js";
import type { ArmResult } from "./interleave.js";
import type { StartSample } from "./start-arms.js";
import { mainPhases } from "./start-report.js";
import { median, ratioOfMedians, summarize } from "./statistics.js";
import { megabytes, ms, type Row, significant, type Table } from "./table.js";

/** One function's starts: timed ones by arm, and traced ones (not timed) by the same names. */
export interface DemoResult {
  readonly heading: string;
  readonly arms: readonly ArmResult<StartSample>[];
  readonly traces: ReadonlyMap<string, readonly TraceHeader[]>;
}

const PHASES_SHOWN = 2;

export function demoTable(results: readonly DemoResult[], runs: number, machine: string): Table {
  return {
    title: "thaw: every way of starting a function, through HTTP",
    subtitle: `${machine}; ${runs} starts each, interleaved; client's request to client's response`,
    columns: [
      { title: "start" },
      ...["median ms", "p99", "vs boot"].map((title) => ({ title, align: "right" as const })),
      { title: "main phases of the start, ms" },
      ...["written", "image", "file", "private MB", "shared"].map((title) => ({ title, align: "right" as const })),
    ],
    rows: results.flatMap(rowsOf),
    notes: [
      "Phases, pages and memory: medians of three more starts of each kind, which look at themselves and are not timed.",
      "written, image, file: resident pages after the reply, by source (4 KiB each): private to the instance, shared with its image, shared with program files.",
    ],
  };
}

function rowsOf({ heading, arms, traces }: DemoResult): Row[] {
  const boot = arms.find(({ name }) => name === "boot")?.samples.map(({ us }) => us) ?? [];
  const rows = arms.map(({ name, samples, failures }): Row => {
    const us = samples.map((sample) => sample.us);
    const { median: middle, p99 } = summarize(us);
    const seen = traces.get(name) ?? [];
    const page = (source: "written" | "image" | "file") => count(median(seen.map(({ pages }) => pages?.[source] ?? Number.NaN)));
    const memory = (part: "privateBytes" | "sharedBytes") =>
      megabytes(median(seen.map((trace) => trace.memory?.[part] ?? Number.NaN)));
    const speedup = ratioOfMedians(boot, us).value;
    return [
      name,
      ms(middle),
      ms(p99),
      name === "boot" ? "" : { text: `${significant(speedup)}x`, tone: speedup > 1 ? "good" : "plain" },
      failures.length > 0
        ? { text: `${failures.length} failed`, tone: "bad" }
        : mainPhases(
            seen.map(({ start }) => start),
            PHASES_SHOWN,
          ),
      page("written"),
      page("image"),
      page("file"),
      memory("privateBytes"),
      memory("sharedBytes"),
    ];
  });
  return [{ heading }, ...rows];
}

function count(pages: number): string {
  return Number.isNaN(pages) ? "–" : Math.round(pages).toLocaleString("en-US");
}
