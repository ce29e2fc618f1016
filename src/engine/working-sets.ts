/**
 * The working set of one open image: what is known of it, whether a start shall record, and whether it still fits.
 *
 *   nothing known ──recordings, at most 5──▶ stable ──several starts fault outside──▶ renewing ──two recordings──▶ stable
 *                                              ▲                                      (the old set serves meanwhile)  │
 *                                              └────────────────────────────────────────────────────────────────────┘
 *
 * One start records at a time; those beside it use what is known (docs/design/working-set.md).
 */
import {
  addRecording,
  clipRuns,
  EMPTY_WORKING_SET,
  expectedFaults,
  type Facts,
  type FaultModel,
  faultModel,
  type PageRun,
  RECORDINGS_MIN,
  type Recording,
  runPages,
  type WorkingSet,
  writeWorkingSet,
} from "../image/index.js";
import type { HuskLevel } from "./types.js";

/** A start fits unless more faults than this part of the set's pages lie outside it … */
const OUTSIDE_PART = 0.1;
/** … and more than this many: a few dozen are noise. */
const OUTSIDE_MIN = 64;
/** The set is stale when half of this many starts do not fit. */
const RECENT_STARTS = 8;
/** A function whose pages change with every request would else be recorded all the time. */
const BACKOFF_STARTS_MAX = 1024;

/** See above. */
export class LiveWorkingSet {
  set: WorkingSet;
  #model: FaultModel;
  #renewing: WorkingSet | undefined;
  #claimed = false;
  #outside: number[] = [];
  #startsSinceRenewal = 0;
  #renewAfterStarts = RECENT_STARTS;
  #renewals = 0;

  /** @param changed called after the set was replaced: what was compiled with it is out of date */
  constructor(
    private readonly dir: string,
    private readonly facts: Facts,
    stored: WorkingSet | undefined,
    private readonly changed: () => void,
  ) {
    this.set = stored ?? EMPTY_WORKING_SET;
    this.#model = faultModel(this.set);
  }

  /** Whether enough was recorded to copy by. */
  get recorded(): boolean {
    return this.set.recordings >= RECORDINGS_MIN;
  }

  /** Whether a start shall record. */
  get wanting(): boolean {
    return this.#renewing !== undefined || !this.set.stable;
  }

  /** Faults outside the set of the last starts, newest last. */
  get outside(): readonly number[] {
    return this.#outside;
  }

  /** How often the set went stale since the image was opened. */
  get renewals(): number {
    return this.#renewals;
  }

  /** True for the start that shall record now; it must call {@link add} or {@link release}. */
  claim(): boolean {
    if (this.#claimed || !this.wanting) return false;
    this.#claimed = true;
    return true;
  }

  /** The recording came to nothing: another start may record. */
  release(): void {
    this.#claimed = false;
  }

  /** Merges what a start recorded and stores it. Rejects when it cannot be written; the next start records again. */
  async add(present: Recording): Promise<void> {
    try {
      if (!this.wanting) return;
      const merged = addRecording(this.#renewing ?? this.set, this.#own(present));
      if (this.#renewing !== undefined && merged.recordings < RECORDINGS_MIN) {
        this.#renewing = merged;
        return;
      }
      await writeWorkingSet(this.dir, merged);
      this.#renewing = undefined;
      this.set = merged;
      this.#model = faultModel(merged);
      this.#outside = [];
      this.changed();
    } finally {
      this.#claimed = false;
    }
  }

  /** Faults of a start that the set does not account for, and their consequence. Undefined while nothing is known. */
  count(faults: { readonly minor: number; readonly major: number }, level: HuskLevel | "fresh"): number | undefined {
    if (this.set.recordings === 0) return undefined;
    const outside = Math.max(
      0,
      faults.minor + faults.major - expectedFaults(this.#model, level === "prefaulted", faults.major > 0),
    );
    this.#outside = [...this.#outside.slice(1 - RECENT_STARTS), outside];
    this.#startsSinceRenewal++;
    if (!this.wanting && this.#stale()) {
      this.#renewing = EMPTY_WORKING_SET;
      this.#renewals++;
      this.#startsSinceRenewal = 0;
      this.#renewAfterStarts = Math.min(BACKOFF_STARTS_MAX, this.#renewAfterStarts * 2);
    }
    return outside;
  }

  #stale(): boolean {
    const limit = Math.max(OUTSIDE_MIN, runPages(this.set.runs) * OUTSIDE_PART);
    const misfits = this.#outside.filter((outside) => outside > limit).length;
    const patient = this.#renewals === 0 || this.#startsSinceRenewal >= this.#renewAfterStarts;
    return misfits * 2 >= RECENT_STARTS && patient;
  }

  /**
   * Only what the image itself brings back: later mappings of the function are not there after a thaw. What was written where the
   * image forbids it (compiled code, which is made writable for a moment) cannot be copied ahead: it counts as touched.
   */
  #own(present: Recording): Recording {
    // Overlays lie on their file, and would count twice.
    const regions = this.facts.regions.filter(({ kind }) => kind !== "vdso" && kind !== "stack" && kind !== "overlay");
    const inside = (runs: readonly PageRun[], fits: (prot: number) => boolean): PageRun[] =>
      regions.filter(({ prot }) => fits(prot)).flatMap((region) => clipRuns(runs, region.start, region.end));
    return {
      ...present,
      written: inside(present.written, (prot) => (prot & 2) !== 0),
      read: [...inside(present.read, (prot) => prot !== 0), ...inside(present.written, (prot) => prot !== 0 && (prot & 2) === 0)],
    };
  }
}
