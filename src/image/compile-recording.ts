/**
 * What a recording start does differently: it begins without a page that somebody else's working set brought, copies nothing
 * ahead, and takes every page by a fault of its own.
 */
import { MADV_DONTNEED, SYS } from "../linux/syscalls.js";
import { isRuntimeFile } from "./compile-memory.js";
import type { Facts } from "./facts.js";
import type { ProgramBuilder } from "./program.js";

/** How a start records. */
export interface TouchTracking {
  /** The kernel's fault-around is switched off, so that a page is present only if it was touched. */
  readonly exact: boolean;
}

/** Drops what a pooled husk has mapped ahead of the interpreter's files: it would count as touched. */
export function forgetRuntime(program: ProgramBuilder, facts: Facts): void {
  for (const region of facts.regions.filter(isRuntimeFile))
    program.call(`drop pages of ${region.path}`, SYS.madvise, [region.start, region.end - region.start, MADV_DONTNEED]);
}
