/**
 * How long a function was idle between the end of its last request and the next one: a histogram with bins that grow. Shahrad et al.
 * ("Serverless in the Wild", ATC'20, §4.2) use 240 bins of a minute. Here an idle instance may cost a second of memory or a day of
 * disk, so bins are a fourth of an octave wide, from 100 ms to beyond a day: the same 19 % everywhere, 80 numbers a function.
 */
import { whole, z } from "../base/schema.js";

const FIRST_MS = 100;
const PER_OCTAVE = 4;
/** 100 ms · 2^(80/4) = 29 hours; what is longer is out of bounds. */
const BINS = 80;

/** What {@link IdleTimes.save} gives; `bins` are pairs of a bin and what fell into it, those that are not empty. */
const SAVED = z.object({
  count: whole,
  outOfBounds: whole,
  lastMs: z.number().nonnegative().exactOptional(),
  bins: z.array(
    z.tuple([
      z
        .int()
        .min(0)
        .max(BINS - 1),
      z.int().positive(),
    ]),
  ),
});

/** What is known of one function's idle times. */
export interface IdleFacts {
  /** The function's name, for policies that keep more about it. */
  readonly name: string;
  /** How many idle times were seen, those out of bounds included. */
  readonly count: number;
  readonly outOfBounds: number;
  /** The last one, milliseconds; undefined before the first. */
  readonly lastMs: number | undefined;
  /** How many fell into each bin. */
  readonly bins: Readonly<Uint32Array>;
  /** Bounds of the bin below which that part of the idle times lies, milliseconds; undefined while there are none. */
  percentile(part: number): { readonly fromMs: number; readonly toMs: number } | undefined;
}

/** See above. */
export class IdleTimes implements IdleFacts {
  readonly bins = new Uint32Array(BINS);
  count = 0;
  outOfBounds = 0;
  lastMs: number | undefined;

  #sinceMs: number | undefined;

  constructor(readonly name: string) {}

  /** The function is idle from now on. */
  begun(): void {
    this.#sinceMs = performance.now();
  }

  /** A request came. */
  ended(): void {
    if (this.#sinceMs === undefined) return;
    this.add(performance.now() - this.#sinceMs);
    this.#sinceMs = undefined;
  }

  add(idleMs: number): void {
    this.count += 1;
    this.lastMs = idleMs;
    const bin = binOf(idleMs);
    if (bin >= BINS) this.outOfBounds += 1;
    else this.bins[bin] = (this.bins[bin] ?? 0) + 1;
  }

  /** As values for JSON. */
  save(): z.input<typeof SAVED> {
    const { count, outOfBounds, lastMs } = this;
    const bins = [...this.bins].flatMap((fell, bin): [number, number][] => (fell > 0 ? [[bin, fell]] : []));
    return { count, outOfBounds, ...(lastMs === undefined ? {} : { lastMs }), bins };
  }

  /** Goes on with what {@link save} gave. Throws, and is as before, when that cannot be. */
  recall(saved: unknown): void {
    const { count, outOfBounds, lastMs, bins } = SAVED.parse(saved);
    const inBounds = bins.reduce((sum, [, fell]) => sum + fell, 0);
    if (inBounds + outOfBounds !== count)
      throw new Error(`${count} idle times are counted, and ${inBounds + outOfBounds} are there`);
    this.count = count;
    this.outOfBounds = outOfBounds;
    this.lastMs = lastMs;
    for (const [bin, fell] of bins) this.bins[bin] = fell;
  }

  percentile(part: number): { fromMs: number; toMs: number } | undefined {
    const inBounds = this.count - this.outOfBounds;
    if (inBounds === 0) return undefined;
    let left = Math.max(1, Math.ceil(part * inBounds));
    let bin = 0;
    for (; bin < BINS - 1; bin++) {
      left -= this.bins[bin] ?? 0;
      if (left <= 0) break;
    }
    return { fromMs: edge(bin), toMs: edge(bin + 1) };
  }
}

/** Where a bin begins. The first one begins at nothing. */
function edge(bin: number): number {
  return bin === 0 ? 0 : FIRST_MS * 2 ** (bin / PER_OCTAVE);
}

function binOf(idleMs: number): number {
  return idleMs <= FIRST_MS ? 0 : Math.floor(Math.log2(idleMs / FIRST_MS) * PER_OCTAVE);
}
