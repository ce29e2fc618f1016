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

/** Cuts runs to the part inside [start, end). */
export function clipRuns(runs: readonly PageRun[], start: bigint, end: bigint): PageRun[] {
  const clipped: PageRun[] = [];
  for (const run of runs) {
    const from = run.address > start ? run.address : start;
    const runEnd = endOf(run);
    const to = runEnd < end ? runEnd : end;
    if (to > from) clipped.push(runBetween(from, to));
  }
  return clipped;
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
