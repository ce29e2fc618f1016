/**
 * The metrics as Prometheus reads them: its text format 0.0.4, with the names of OpenTelemetry's conventions for functions where those
 * have one. It is written from the same counters as the JSON; a client library would keep all of them a second time.
 * https://prometheus.io/docs/instrumenting/exposition_formats/
 */
import type { HistogramView } from "../base/histogram.js";
import type { StartKind } from "../engine/types.js";
import { type Counters, DURATION_BOUNDS_MS } from "../platform/types.js";
import type { MetricsView } from "./control.js";

/** The content type of {@link exposition}. */
export const EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Readonly<Record<string, string>>;

/** A member of {@link Counters} that is a plain number. */
type Plain = { [K in keyof Counters]-?: Counters[K] extends number ? K : never }[keyof Counters];

/** Of each function. */
const PLAIN: readonly (readonly [Plain, string, string])[] = [
  [
    "functionErrors",
    "faas_errors_total",
    "Requests that ended with an error of the function: thrown, exited, out of time or memory.",
  ],
  ["timeouts", "faas_timeouts_total", "Of those, requests that took longer than the function's limit."],
  ["outOfMemory", "faas_out_of_memory_total", "Of those, requests that ran out of memory."],
  ["throttles", "faas_throttles_total", "Requests refused with 429."],
  ["fallbacks", "faas_fallbacks_total", "Starts that did not go the intended way."],
  ["faults", "faas_start_faults_total", "Page faults of thawed and parked instances up to their first answer."],
  ["faultsOutside", "faas_start_faults_outside_total", "Of those, faults outside the recorded working set."],
  ["majorFaults", "faas_start_faults_major_total", "Of those, faults that waited for a disk."],
  ["freezes", "faas_freezes_total", "Images of generation 0 made."],
  ["freezeFailures", "faas_freeze_failures_total", "Images of generation 0 that could not be made."],
  ["heatFreezes", "faas_heat_freezes_total", "Hotter images made."],
  ["heatFailures", "faas_heat_failures_total", "Hotter images that could not be made."],
  ["imagesDropped", "faas_images_dropped_total", "Images that could not be used any more."],
  ["hibernations", "faas_hibernations_total", "Idle instances hibernated."],
  ["hibernateFailures", "faas_hibernate_failures_total", "Idle instances that could not be hibernated."],
  ["deflationsCancelled", "faas_deflations_cancelled_total", "Hibernations given up because a request came."],
  ["wakes", "faas_wakes_total", "Hibernated instances woken, by a request or ahead of one."],
  ["evictions", "faas_evictions_total", "Idle instances ended for another's sake."],
  ["logWriteFailures", "faas_log_write_failures_total", "Writes to a function's log that failed."],
];
/** A new instance was needed while the request waited. */
const COLD: readonly StartKind[] = ["boot", "thaw", "parked"];

/** The page. Functions that were never asked, and of which nothing was counted, are left out. */
export function exposition(metrics: MetricsView): string {
  const page = new Page();
  const functions = Object.entries(metrics.functions)
    .filter(([, counters]) => counters.handlerMs !== undefined || PLAIN.some(([member]) => counters[member] > 0))
    .map(([name, counters]) => ({ labels: { faas_name: name }, counters }));
  page.family("faas_invocations_total", "counter", "Requests that a handler answered without an error.");
  for (const { labels, counters } of functions) page.sample(labels, counters.invocations - counters.functionErrors);
  for (const [member, name, help] of PLAIN) {
    page.family(name, "counter", help);
    for (const { labels, counters } of functions) page.sample(labels, counters[member]);
  }
  page.family("faas_starts_total", "counter", "Requests answered, by how their instance was started.");
  for (const { labels, counters } of functions)
    for (const [kind, count] of Object.entries(counters.starts)) page.sample({ ...labels, kind }, count);
  page.family("faas_coldstarts_total", "counter", "Requests for which a new instance was started: booted, thawed or parked.");
  for (const { labels, counters } of functions)
    page.sample(
      labels,
      COLD.reduce((sum, kind) => sum + counters.starts[kind], 0),
    );
  page.family("faas_invoke_duration_seconds", "histogram", "Time in the handler.");
  for (const { labels, counters } of functions) page.histogram(labels, counters.handlerMs);
  page.family(
    "faas_start_duration_seconds",
    "histogram",
    "Time from the decision to start until the instance was there, of all functions.",
  );
  for (const [kind, histogram] of Object.entries(metrics.startMs)) page.histogram({ kind }, histogram);

  const { running, idle, hibernated, starting, waiting, max } = metrics.instances;
  page.family("faas_instances", "gauge", "Instances by state.");
  for (const [state, count] of Object.entries({ running, idle, hibernated, starting })) page.sample({ state }, count);
  page.family("faas_instances_max", "gauge", "The most instances that the server runs.").sample({}, max);
  page.family("faas_requests_waiting", "gauge", "Requests that wait for a certain instance.").sample({}, waiting);
  const { residentBytes, hibernatedBytes, budgetBytes } = metrics.memory;
  page.family("faas_resident_bytes", "gauge", "Private resident memory of instances and parked husks.").sample({}, residentBytes);
  page.family("faas_hibernated_bytes", "gauge", "Memory of hibernated instances that lies on disk.").sample({}, hibernatedBytes);
  if (budgetBytes !== undefined)
    page.family("faas_memory_budget_bytes", "gauge", "What resident memory may come to.").sample({}, budgetBytes);
  const { engine } = metrics;
  page.family("faas_husks", "gauge", "Empty processes that wait for a start, by how far they are prepared.");
  for (const [level, count] of Object.entries(engine.husks)) page.sample({ level }, count);
  page.family("faas_husk_bytes", "gauge", "Private resident memory of those.").sample({}, engine.huskBytes);
  page.family("faas_husks_made_total", "counter", "Empty processes made.").sample({}, engine.husksMade);
  page.family("faas_husk_making_seconds_total", "counter", "Time spent on making them.").sample({}, engine.husksUs / 1e6);
  return page.text();
}

/** Lines of one family after the other. */
class Page {
  readonly #lines: string[] = [];
  #name = "";

  family(name: string, type: "counter" | "gauge" | "histogram", help: string): this {
    this.#name = name;
    this.#lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`);
    return this;
  }

  sample(labels: Labels, value: number, suffix = ""): void {
    const inside = Object.entries(labels).map(([name, text]) => `${name}="${escaped(text)}"`);
    this.#lines.push(`${this.#name}${suffix}${inside.length === 0 ? "" : `{${inside.join(",")}}`} ${value}`);
  }

  histogram(labels: Labels, view: HistogramView | undefined): void {
    if (view === undefined) return;
    let below = 0;
    DURATION_BOUNDS_MS.forEach((bound, index) => {
      below += view.buckets[index] ?? 0;
      this.sample({ ...labels, le: String(bound / 1000) }, below, "_bucket");
    });
    this.sample({ ...labels, le: "+Inf" }, view.count, "_bucket");
    this.sample(labels, view.sum / 1000, "_sum");
    this.sample(labels, view.count, "_count");
  }

  text(): string {
    return `${this.#lines.join("\n")}\n`;
  }
}

function escaped(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
