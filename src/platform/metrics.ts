/** Counters: plain numbers, incremented on the way of a request, read as a snapshot. */
import { Histogram, type HistogramView } from "../base/histogram.js";
import type { InvokeResult, StartFaults, StartKind, StartResult } from "../engine/types.js";
import { type Counters, DURATION_BOUNDS_MS } from "./types.js";

/** What is more than a number. */
type Composed = "starts" | "startUs" | "handlerMs";
type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** One set of counters; the platform's own, or a function's, which adds to the platform's too. */
export class CounterSet {
  readonly #values: Mutable<Omit<Counters, Composed>> = {
    invocations: 0,
    functionErrors: 0,
    timeouts: 0,
    outOfMemory: 0,
    throttles: 0,
    fallbacks: 0,
    freezes: 0,
    freezeFailures: 0,
    heatFreezes: 0,
    heatFailures: 0,
    imagesDropped: 0,
    evictions: 0,
    logWriteFailures: 0,
    faults: 0,
    faultsOutside: 0,
    majorFaults: 0,
    hibernations: 0,
    hibernateFailures: 0,
    deflationsCancelled: 0,
    wakes: 0,
  };
  readonly #starts: Record<StartKind, number> = { boot: 0, thaw: 0, parked: 0, reuse: 0, wake: 0 };
  readonly #startUs: Record<StartKind, number> = { boot: 0, thaw: 0, parked: 0, reuse: 0, wake: 0 };
  /** Made with the first answer: of thousands of functions few are asked. */
  #handlerMs: Histogram | undefined;
  readonly #startMs = new Map<StartKind, Histogram>();

  constructor(private readonly parent?: CounterSet) {}

  /** Adds one to a counter. */
  add(name: keyof Omit<Counters, Composed>): void {
    this.#values[name] += 1;
    this.parent?.add(name);
  }

  /** Counts the page faults of one start. `outside`: undefined when nothing is known of its working set. */
  faulted(faults: StartFaults, outside: number | undefined): void {
    this.#values.faults += faults.minor + faults.major;
    this.#values.faultsOutside += outside ?? 0;
    this.#values.majorFaults += faults.major;
    this.parent?.faulted(faults, outside);
  }

  /** Counts one answered request and how its instance was started. */
  answered(start: StartResult, result: InvokeResult): void {
    this.#values.invocations += 1;
    this.#starts[start.kind] += 1;
    this.#startUs[start.kind] += start.us;
    this.#handlerMs ??= new Histogram(DURATION_BOUNDS_MS);
    this.#handlerMs.add(result.handlerMs);
    // Of each function the sum is enough.
    if (this.parent === undefined) this.#startsOf(start.kind).add(start.us / 1000);
    if (start.kind === "wake") this.#values.wakes += 1;
    if (start.fallback !== undefined) this.#values.fallbacks += 1;
    if (result.functionError !== undefined) {
      this.#values.functionErrors += 1;
      if (result.platformError === "TIMEOUT") this.#values.timeouts += 1;
      if (result.platformError === "OUT_OF_MEMORY") this.#values.outOfMemory += 1;
    }
    this.parent?.answered(start, result);
  }

  snapshot(): Counters {
    const handlerMs = this.#handlerMs?.view();
    return {
      ...this.#values,
      starts: { ...this.#starts },
      startUs: { ...this.#startUs },
      ...(handlerMs === undefined ? {} : { handlerMs }),
    };
  }

  /** How long the starts of all functions took, of the kinds that there were; of a function's own counters none. */
  startMs(): Partial<Record<StartKind, HistogramView>> {
    return Object.fromEntries([...this.#startMs].map(([kind, histogram]) => [kind, histogram.view()]));
  }

  #startsOf(kind: StartKind): Histogram {
    const known = this.#startMs.get(kind);
    if (known !== undefined) return known;
    const made = new Histogram(DURATION_BOUNDS_MS);
    this.#startMs.set(kind, made);
    return made;
  }
}
