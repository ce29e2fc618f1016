/** Runs of pages: how memory is told wherever it is more than one page. */
import { PAGE_BYTES } from "../base/units.js";

/** Consecutive pages. */
export interface PageRun {
  readonly address: bigint;
  readonly pages: number;
}

const BYTES = BigInt(PAGE_BYTES);

/** The number of the page at an address, counted from address 0. */
export function pageAt(address: bigint): number {
  return Number(address / BYTES);
}

/** Where the page of that number begins. */
export function addressOf(page: number): bigint {
  return BigInt(page) * BYTES;
}

/** The address behind a run. */
export function endOf({ address, pages }: PageRun): bigint {
  return address + addressOf(pages);
}

/** The pages from `start` up to `end`. */
export function runBetween(start: bigint, end: bigint): PageRun {
  return { address: start, pages: pageAt(end - start) };
}

/** Pages in a list of runs. */
export function runPages(runs: readonly PageRun[]): number {
  return runs.reduce((sum, run) => sum + run.pages, 0);
}

/** The addresses of these pages. */
export function pageAddresses(runs: readonly PageRun[]): bigint[] {
  return runs.flatMap(({ address, pages }) => Array.from({ length: pages }, (_, index) => address + addressOf(index)));
}

/** Joins runs that lie at most `gapPages` apart: one longer call costs less than two. Input and output sorted by address. */
export function joinRuns(runs: readonly PageRun[], gapPages: number): PageRun[] {
  const joined: { start: bigint; end: bigint }[] = [];
  for (const run of [...runs].sort((a, b) => (a.address < b.address ? -1 : 1))) {
    const end = endOf(run);
    const last = joined.at(-1);
    if (last === undefined || run.address > last.end + addressOf(gapPages)) joined.push({ start: run.address, end });
    else if (end > last.end) last.end = end;
  }
  return joined.map(({ start, end }) => runBetween(start, end));
}

/** The part of a run inside [start, end); undefined where it has none. */
export function clipRun({ address, pages }: PageRun, start: bigint, end: bigint): PageRun | undefined {
  const runEnd = address + addressOf(pages);
  const from = address > start ? address : start;
  const to = runEnd < end ? runEnd : end;
  return to > from ? { address: from, pages: from === address && to === runEnd ? pages : pageAt(to - from) } : undefined;
}

/**
 * What lies in memory, by address; nothing overlaps. Compared as numbers, which costs no memory for each comparison, and is exact for addresses of pages. Who asks in
 * order of address gets the answer from where the last one was.
 */
export class ByAddress<T> {
  #at = 0;

  /** @param sorted by address */
  constructor(
    readonly sorted: readonly T[],
    private readonly end: (one: T) => number,
  ) {}

  /** The index of the first that ends behind `address`; the number of all where there is none. */
  firstEndingAfter(address: bigint | number): number {
    const behind = Number(address);
    if (this.#endsAfter(this.#at, behind) && !(this.#at > 0 && this.#endsAfter(this.#at - 1, behind))) return this.#at;
    let low = 0;
    let high = this.sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#endsAfter(middle, behind)) high = middle;
      else low = middle + 1;
    }
    this.#at = low;
    return low;
  }

  #endsAfter(index: number, address: number): boolean {
    return index >= this.sorted.length || this.end(this.sorted[index] as T) > address;
  }
}

/**
 * Runs that do not overlap, to be asked for by address. An image may have 32,768 mappings and a set thousands of runs: to compare each with each would hold the
 * event loop for seconds.
 */
export class SortedRuns {
  readonly #runs: ByAddress<PageRun>;

  constructor(runs: readonly PageRun[]) {
    const isSorted = runs.every(({ address }, index) => index === 0 || address >= (runs[index - 1] as PageRun).address);
    const sorted = isSorted ? runs : [...runs].sort((a, b) => (a.address < b.address ? -1 : 1));
    this.#runs = new ByAddress(sorted, ({ address, pages }) => Number(address) + pages * PAGE_BYTES);
  }

  /** Cut to the part inside [start, end), in order of address. */
  within(start: bigint, end: bigint): PageRun[] {
    const { sorted } = this.#runs;
    const clipped: PageRun[] = [];
    for (let index = this.#runs.firstEndingAfter(start); index < sorted.length; index++) {
      const part = clipRun(sorted[index] as PageRun, start, end);
      if (part === undefined) break;
      clipped.push(part);
    }
    return clipped;
  }
}

/** The pages of a run that its sorted parts leave. */
export function gapsIn(run: PageRun, parts: readonly PageRun[]): PageRun[] {
  const left: PageRun[] = [];
  let at = run.address;
  for (const part of [...parts, { address: endOf(run), pages: 0 }]) {
    if (part.address > at) left.push(runBetween(at, part.address));
    at = endOf(part);
  }
  return left;
}
