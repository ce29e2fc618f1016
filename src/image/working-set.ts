/**
 * The working set: the pages that one invocation touched, split into those it wrote and those it only read (REAP §5,
 * Spice). Stored beside the image; losing it costs speed, never correctness.
 */
import { createHash } from "node:crypto";
import { z } from "zod";

/** Consecutive pages. */
export interface PageRun {
  readonly address: bigint;
  readonly pages: number;
}

export interface WorkingSet {
  /** Pages that became private copies. */
  readonly written: readonly PageRun[];
  /** Pages that stayed shared with the page space or a file. */
  readonly read: readonly PageRun[];
  /** Page faults that the recorded start and request took, everything by demand. */
  readonly faults: number;
}

export const EMPTY_WORKING_SET: WorkingSet = { written: [], read: [], faults: 0 };

/** Pages in a list of runs. */
export function runPages(runs: readonly PageRun[]): number {
  return runs.reduce((sum, run) => sum + run.pages, 0);
}

/** Joins runs that lie at most `gapPages` apart: one longer call costs less than two. Input and output sorted by address. */
export function joinRuns(runs: readonly PageRun[], gapPages: number): PageRun[] {
  const joined: { address: bigint; pages: number }[] = [];
  for (const run of [...runs].sort((a, b) => (a.address < b.address ? -1 : 1))) {
    const last = joined.at(-1);
    const lastEnd = last === undefined ? 0n : last.address + BigInt(last.pages) * 4096n;
    if (last !== undefined && run.address <= lastEnd + BigInt(gapPages) * 4096n) {
      const end = run.address + BigInt(run.pages) * 4096n;
      if (end > lastEnd) last.pages = Number((end - last.address) / 4096n);
    } else joined.push({ address: run.address, pages: run.pages });
  }
  return joined;
}

/** The pages that both lists have. Sorted by address. */
export function intersectRuns(first: readonly PageRun[], second: readonly PageRun[]): PageRun[] {
  const others = joinRuns(second, 0);
  return joinRuns(
    joinRuns(first, 0).flatMap((run) => clipRuns(others, run.address, run.address + BigInt(run.pages) * 4096n)),
    0,
  );
}

/** Cuts runs to the part inside [start, end). */
export function clipRuns(runs: readonly PageRun[], start: bigint, end: bigint): PageRun[] {
  const clipped: PageRun[] = [];
  for (const run of runs) {
    const from = run.address > start ? run.address : start;
    const runEnd = run.address + BigInt(run.pages) * 4096n;
    const to = runEnd < end ? runEnd : end;
    if (to > from) clipped.push({ address: from, pages: Number((to - from) / 4096n) });
  }
  return clipped;
}

const runsSchema = z.array(z.tuple([z.string().regex(/^0x[0-9a-f]+$/), z.int().positive()]));
const fileSchema = z.object({
  version: z.literal(1),
  sha256: z.string(),
  written: runsSchema,
  read: runsSchema,
  faults: z.int().nonnegative(),
});

function digest(written: unknown, read: unknown, faults: number): string {
  return createHash("sha256")
    .update(JSON.stringify([written, read, faults]))
    .digest("hex");
}

/** The bytes of a working-set file. */
export function encodeWorkingSet(set: WorkingSet): Buffer {
  const plain = (runs: readonly PageRun[]): [string, number][] => runs.map((run) => [`0x${run.address.toString(16)}`, run.pages]);
  const written = plain(set.written);
  const read = plain(set.read);
  return Buffer.from(
    JSON.stringify({ version: 1, sha256: digest(written, read, set.faults), written, read, faults: set.faults }),
  );
}

/** Parses a working-set file; undefined when it is damaged in any way (it is then recorded anew). */
export function decodeWorkingSet(bytes: Buffer): WorkingSet | undefined {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString("utf8"));
  } catch {
    return undefined;
  }
  const parsed = fileSchema.safeParse(value);
  if (!parsed.success || parsed.data.sha256 !== digest(parsed.data.written, parsed.data.read, parsed.data.faults))
    return undefined;
  const runs = (list: [string, number][]): PageRun[] => list.map(([address, pages]) => ({ address: BigInt(address), pages }));
  return { written: runs(parsed.data.written), read: runs(parsed.data.read), faults: parsed.data.faults };
}
