/**
 * The floor's program: the mappings of an image and as many faults as its recorded start took, nothing else. The husk times
 * itself with two stamps, so that no message is in the figure.
 */
import { isMemory, mapRegion } from "./compile-memory.js";
import type { Facts } from "./facts.js";
import { type PageRun, pageAddresses, SortedRuns } from "./page-runs.js";
import { type Program, ProgramBuilder } from "./program.js";
import type { WorkingSet } from "./working-set.js";

/** Stamps of the floor's program. */
export const FLOOR_STAMPS = { begin: 1, mapped: 2, faulted: 3 } as const;

/** Fault-around maps this many pages at once; touching one in each block makes one fault. */
const FAULT_AROUND_BYTES = 65_536n;
const TOUCHES_MAX = 20_000;

interface Floor {
  readonly program: Program;
  readonly mappings: number;
  readonly faults: number;
}

/** Passes: pages, task and base of a thaw. Regions that a thaw takes from files of the interpreter are not part of it. */
export function compileFloor(facts: Facts, set: WorkingSet): Floor {
  const program = new ProgramBuilder();
  const regions = facts.regions.filter(isMemory);
  program.stamp(FLOOR_STAMPS.begin);
  for (const region of regions) mapRegion(program, region, "lazy");
  program.stamp(FLOOR_STAMPS.mapped);
  const writable = regions.filter(({ prot }) => (prot & 3) === 3);
  const readable = regions.filter(({ prot, runs }) => (prot & 1) === 1 && (runs?.length ?? 0) > 0);
  const [written, read] = [new SortedRuns(set.written), new SortedRuns(set.read)];
  const writes = pages(writable.flatMap((region) => written.within(region.start, region.end)));
  for (const address of writes) program.poke(address, 0n, 8);
  let reads = 0;
  for (const address of blocks(readable.flatMap((region) => read.within(region.start, region.end)))) {
    if (writes.length + reads >= Math.min(set.faults, TOUCHES_MAX)) break;
    program.load("touch", address, { mayFail: true });
    reads++;
  }
  program.stamp(FLOOR_STAMPS.faulted);
  return { program: program.build(), mappings: regions.length, faults: writes.length + reads };
}

function pages(runs: readonly PageRun[]): bigint[] {
  return pageAddresses(runs).slice(0, TOUCHES_MAX);
}

function blocks(runs: readonly PageRun[]): Set<bigint> {
  const seen = new Map<bigint, bigint>();
  for (const address of pages(runs)) if (!seen.has(address / FAULT_AROUND_BYTES)) seen.set(address / FAULT_AROUND_BYTES, address);
  return new Set(seen.values());
}
