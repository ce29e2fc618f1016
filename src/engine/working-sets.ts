/**
 * The working set of one open image: what is known of it, whether a start shall record, and whether it still fits.
 *
 *   nothing known ──recordings, at most 5──▶ stable ──several starts fault outside──▶ renewing ──two recordings──▶ stable
 *                                              ▲                                      (the old set serves meanwhile)  │
 *                                              └────────────────────────────────────────────────────────────────────┘
 *
 * One start records at a time; those beside it use what is known (docs/design/working-set.md). A set that was rehearsed (rehearsal.ts) is stable, too, and
 * provisional: two starts that were scanned and fit confirm it, and one that does not fit has it recorded anew.
 *
 * A set of one event alone, recorded again and again, has pages in it that other events do not need, which no count of faults tells. It goes stale when half of the
 * last starts had others; where those vary, each is recorded once.
 */
import { nextTurn } from "../base/turns.js";
import {
  addRecording,
  EMPTY_WORKING_SET,
  expectedFaults,
  type Facts,
  type FaultModel,
  faultModel,
  isFile,
  isRead,
  type PageRun,
  type PresentRuns,
  RECORDINGS_MIN,
  type Recording,
  type Region,
  runPages,
  SetMap,
  SortedRuns,
  type WorkingSet,
  writeWorkingSet,
} from "../image/index.js";
import { PROT_WRITE } from "../linux/syscalls.js";
import type { HuskLevel } from "./types.js";

/** A start fits unless more faults than this part of the set's pages lie outside it … */
const OUTSIDE_PART = 0.1;
/** … and more than this many: a few dozen are noise. */
const OUTSIDE_MIN = 64;
/** The set is stale when half of this many starts do not fit. */
const RECENT_STARTS = 8;
/** One start in so many is scanned, which takes about 2 ms of processor time beside the instance … */
const SCAN_STARTS = 8;
/** … and fewer once so many scans in a row fitted. */
const SCANS_TRUSTED = 8;
const SCAN_STARTS_TRUSTED = 64;
/** A function whose pages change with every request would else be recorded all the time. */
const BACKOFF_STARTS_MAX = 1024;
/** Of more runs of pages, each step of merging takes some milliseconds. */
const RUNS_AT_ONCE = 4096;
/** So many scans confirm what was rehearsed. */
const SCANS_CONFIRM = 2;
/** Where events vary, so many recordings of events that were recorded already are left out. Beyond, they do not vary any more. */
const REPEATS_MAX = 3;

const NOT_OWN: readonly Region["kind"][] = ["vdso", "overlay", "backed"];

/** See above. */
export class LiveWorkingSet {
  set: WorkingSet;
  #model: FaultModel;
  #map: SetMap | undefined;
  /** Overlays lie on their file, and would count twice; what is shared with a file of the clone's own cannot be made ahead. */
  readonly #ownRegions: readonly Region[];
  #renewing: WorkingSet | undefined;
  #claimed = false;
  #outside: number[] = [];
  /** Their events, as digests; undefined where the event is the one of all recordings, or not known. */
  #others: (number | undefined)[] = [];
  /** Events of the recordings of the set that is in the making. */
  #events: number[] = [];
  #varied = false;
  #repeats = 0;
  #untilScan = 0;
  #scansFit = 0;
  #startsSinceRenewal = 0;
  #renewAfterStarts = RECENT_STARTS;
  #renewals = 0;

  /** @param changed called after the set was replaced: what was compiled with it is out of date */
  constructor(
    private readonly dir: string,
    facts: Facts,
    stored: WorkingSet | undefined,
    private readonly changed: () => void,
  ) {
    this.set = stored ?? EMPTY_WORKING_SET;
    if (stored?.event !== undefined) this.#events.push(stored.event);
    this.#model = faultModel(this.set);
    this.#ownRegions = facts.regions.filter((region) => !NOT_OWN.includes(region.kind) && !isRead(region));
  }

  /** Whether enough was recorded to copy by. */
  get recorded(): boolean {
    return this.set.recordings >= RECORDINGS_MIN;
  }

  /** Whether a parked husk shall be one that can record: where all starts are parked ones, no other would. */
  get tracked(): boolean {
    return !this.recorded || (this.#renewing !== undefined && this.set.rehearsed === true);
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
      if (!this.wanting || this.#repeated(present.event)) return;
      const own = this.#own(present);
      if (runCount(own) > RUNS_AT_ONCE) await nextTurn();
      const merged = addRecording(this.#renewing ?? this.set, own);
      if (this.#renewing !== undefined && merged.recordings < RECORDINGS_MIN) {
        this.#renewing = merged;
        return;
      }
      if (runCount(own) > RUNS_AT_ONCE) await nextTurn();
      await writeWorkingSet(this.dir, merged);
      this.#renewing = undefined;
      this.set = merged;
      this.#model = faultModel(merged);
      this.#map = undefined;
      this.#outside = [];
      this.#others = [];
      this.#scansFit = 0;
      this.#untilScan = 0;
      this.changed();
    } finally {
      this.#claimed = false;
    }
  }

  /** What starts read lies together on the disk now. `of`: the set by which it was moved. Does nothing when that was replaced meanwhile. */
  async markPacked(of: WorkingSet): Promise<void> {
    if (this.set !== of) return;
    const packed: WorkingSet = { ...of, packed: true };
    await writeWorkingSet(this.dir, packed);
    if (this.set !== of) return;
    this.set = packed;
    this.changed();
  }

  /** Faults of a start that at least lay outside the set, by their number alone. Undefined while nothing is known. */
  bound(faults: { readonly minor: number; readonly major: number }, level: HuskLevel | "fresh"): number | undefined {
    if (this.set.recordings === 0) return undefined;
    return Math.max(0, faults.minor + faults.major - expectedFaults(this.#model, level === "prefaulted", faults.major > 0));
  }

  /** Whether it is worth a scan what this start touched: one in eight, later one in 64, and all while the starts do not fit. */
  scanDue(bound: number): boolean {
    const last = this.#outside.at(-1) ?? 0;
    return this.#untilScan === 0 || !this.#fits(bound) || !this.#fits(last);
  }

  /** Faults that at least lay outside the set, by what is present. `ahead`: a pooled husk had pages of files mapped already. */
  outsideOf(present: PresentRuns, ahead: boolean): number {
    this.#map ??= new SetMap(this.set);
    const regions = this.#ownRegions.filter((region) => region.prot !== 0 && !(ahead && isFile(region)));
    const inside = (runs: readonly PageRun[]): PageRun[] => insideOf(regions, new SortedRuns(runs));
    return this.#map.outside({ written: inside(present.written), read: inside(present.read), huge: present.huge });
  }

  /** Takes note of a start's faults outside the set, and of its event. When too many starts have too many, or other events, the next ones record. */
  note(outside: number, event?: number): void {
    this.#outside = [...this.#outside.slice(1 - RECENT_STARTS), outside];
    const other = this.set.event === undefined || event === this.set.event ? undefined : event;
    this.#others = [...this.#others.slice(1 - RECENT_STARTS), other];
    if (!this.#fits(outside)) {
      this.#scansFit = 0;
      this.#untilScan = 0;
    } else if (this.#untilScan > 0) this.#untilScan--;
    else if (++this.#scansFit < SCANS_CONFIRM && this.set.rehearsed === true) this.#untilScan = 0;
    else {
      this.#untilScan = (this.#scansFit < SCANS_TRUSTED ? SCAN_STARTS : SCAN_STARTS_TRUSTED) - 1;
      if (this.set.rehearsed === true) this.#confirm();
    }
    this.#startsSinceRenewal++;
    if (this.wanting || !this.#stale()) return;
    this.#renewing = EMPTY_WORKING_SET;
    this.#events = [];
    this.#repeats = 0;
    this.#varied = new Set(this.#knownOthers).size > 1;
    // It was expected of a set without the function's own code.
    if (this.set.rehearsed === true) return;
    this.#renewals++;
    this.#startsSinceRenewal = 0;
    this.#renewAfterStarts = Math.min(BACKOFF_STARTS_MAX, this.#renewAfterStarts * 2);
  }

  #fits(outside: number): boolean {
    if (this.set.rehearsed === true) return outside <= OUTSIDE_MIN;
    return outside <= Math.max(OUTSIDE_MIN, runPages(this.set.runs) * OUTSIDE_PART);
  }

  /** Nothing that the function's own code touches is missing from what was rehearsed. */
  #confirm(): void {
    const confirmed: WorkingSet = { ...this.set, rehearsed: undefined };
    this.set = confirmed;
    this.changed();
    // Where it cannot be written it will be confirmed again, by the next server.
    writeWorkingSet(this.dir, confirmed).catch(() => undefined);
  }

  #stale(): boolean {
    const misfits = this.#outside.filter((outside) => !this.#fits(outside)).length;
    if (this.set.rehearsed === true) return misfits > 0;
    const patient = this.#renewals === 0 || this.#startsSinceRenewal >= this.#renewAfterStarts;
    return (misfits * 2 >= RECENT_STARTS || this.#knownOthers.length * 2 >= RECENT_STARTS) && patient;
  }

  get #knownOthers(): number[] {
    return this.#others.filter((event) => event !== undefined);
  }

  /** Whether an event was recorded that is known already, among others: it would have more than one vote about what all need. */
  #repeated(event: number | undefined): boolean {
    if (event === undefined) return false;
    const known = this.#events.includes(event);
    if (!known) {
      this.#varied ||= this.#events.length > 0;
      this.#events.push(event);
    }
    return known && this.#varied && this.#repeats++ < REPEATS_MAX;
  }

  /**
   * Only what the image itself brings back: later mappings of the function are not there after a thaw. What was written where the
   * image forbids it (compiled code, which is made writable for a moment) cannot be copied ahead: it counts as touched.
   */
  #own(present: Recording): Recording {
    const [written, read] = [new SortedRuns(present.written), new SortedRuns(present.read)];
    const inside = (runs: SortedRuns, fits: (prot: number) => boolean): PageRun[] =>
      insideOf(
        this.#ownRegions.filter(({ prot }) => fits(prot)),
        runs,
      );
    return {
      ...present,
      written: inside(written, (prot) => (prot & PROT_WRITE) !== 0),
      read: [...inside(read, (prot) => prot !== 0), ...inside(written, (prot) => prot !== 0 && (prot & PROT_WRITE) === 0)],
    };
  }
}

function runCount({ written, read }: Recording): number {
  return written.length + read.length;
}

function insideOf(regions: readonly Region[], runs: SortedRuns): PageRun[] {
  return regions.flatMap(({ start, end }) => runs.within(start, end));
}
