/**
 * What a recording start does differently: it begins without a page that somebody else's working set brought, copies nothing
 * ahead, and takes every page by a fault of its own.
 *
 * The kernel maps up to 16 cached pages around each page that a fault reads, so that what is present says little about what was
 * touched. It does not do so in mappings that are registered with a userfaultfd for write protection
 * (uffd_disable_fault_around, mm/memory.c). Nothing is ever protected and no event is ever read: the registration alone
 * does it. It lasts as long as somebody holds the descriptor, which the keeper does until the pages were counted. Where the page
 * cache holds 2 MiB in one piece, one fault maps all of it: huge pages are switched off for the process, for as long as it lives.
 */
import { MADV_DONTNEED, O_CLOEXEC, SYS } from "../linux/syscalls.js";
import {
  UFFD_USER_MODE_ONLY,
  UFFDIO_API,
  UFFDIO_REGISTER,
  USERFAULTFD_IOC_NEW,
  uffdApi,
  uffdRegister,
} from "../linux/userfaultfd.js";
import { isRuntimeFile } from "./compile-memory.js";
import { type Facts, isShared, type Region } from "./facts.js";
import type { ProgramBuilder, Slot } from "./program.js";
import { spansOf } from "./spans.js";

const PR_SET_THP_DISABLE = 41;

/** How a start records. */
export interface TouchTracking {
  /** The kernel's fault-around is switched off, so that a page is present only if it was touched. */
  readonly exact: boolean;
}

/** Passed to the memory program of a husk that is parked, in the place that the control channel has in THAW_PASSES. */
export const PARK_PASSES = { userfaultfd: 3 } as const;

/** Drops what a pooled husk has mapped ahead of the interpreter's files: it would count as touched. */
export function forgetRuntime(program: ProgramBuilder, facts: Facts): void {
  for (const region of facts.regions.filter(isRuntimeFile))
    program.call(`drop pages of ${region.path}`, SYS.madvise, [region.start, region.end - region.start, MADV_DONTNEED]);
}

/** From here on a page is present only if it was touched. @param device /dev/userfaultfd */
export function trackTouches(program: ProgramBuilder, facts: Facts, device: Slot): void {
  const uffd = program.slot();
  program.call("make a userfaultfd", SYS.ioctl, [device, USERFAULTFD_IOC_NEW, O_CLOEXEC | UFFD_USER_MODE_ONLY], { result: uffd });
  program.call("userfaultfd: ask for its features", SYS.ioctl, [uffd, UFFDIO_API, program.data(uffdApi())]);
  program.call("no huge pages", SYS.prctl, [PR_SET_THP_DISABLE, 1, 0, 0, 0]);
  for (const { start, end } of spansOf(facts.regions, isRegisterable))
    program.call(`userfaultfd: register 0x${start.toString(16)}`, SYS.ioctl, [
      uffd,
      UFFDIO_REGISTER,
      program.data(uffdRegister(start, end)),
    ]);
  program.give("userfaultfd: hand it to the keeper", uffd);
}

/**
 * The kernel refuses (EPERM) a span with a mapping that could never be written: the vdso, and files mapped shared. Those few pages stay
 * inexact, as do those of shared memory.
 */
function isRegisterable(region: Region): boolean {
  return region.kind !== "vdso" && !isShared(region);
}
