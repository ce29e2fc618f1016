/**
 * Memory that the pager fills (native/space.c): the husk makes a userfaultfd, gives it away together with a gate, and waits at the gate
 * until the pager has registered its regions and installed what was recorded. It is a full userfaultfd: faults that the kernel takes for
 * the function, in read(2) or futex(2), are served like its own.
 */
import { ABI_CONSTANTS } from "../linux/abi.js";
import { EFD_CLOEXEC, F_DUPFD_CLOEXEC, O_CLOEXEC, O_NONBLOCK, SYS } from "../linux/syscalls.js";
import { USERFAULTFD_IOC_NEW } from "../linux/userfaultfd.js";
import { isMemory } from "./compile-memory.js";
import type { Region } from "./facts.js";
import type { ProgramBuilder, Slot } from "./program.js";

const GATE_BYTES = 8;

/** Whether a region's pages lie in a page space, the image's or its base's, so that a loader decides how they come. */
export function isStored(region: Region): boolean {
  return isMemory(region) && region.wipe !== 1 && (region.runs?.length ?? 0) > 0;
}

/** Everything is mapped; here the husk waits for the pager. @param device /dev/userfaultfd @param fdBase first number for descriptors */
export function waitForPager(program: ProgramBuilder, device: Slot, fdBase: number): void {
  const gate = program.slot();
  const given = program.slot();
  const uffd = program.slot();
  program.call("make the pager's gate", SYS.eventfd2, [0, EFD_CLOEXEC], { result: gate });
  program.call("copy the pager's gate", SYS.fcntl, [gate, F_DUPFD_CLOEXEC, fdBase], { result: given });
  program.give("hand the gate to the keeper", given, ABI_CONSTANTS.GIFT_GATE);
  // The pager reads its events, and must not wait for them.
  program.call("make a userfaultfd", SYS.ioctl, [device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK], { result: uffd });
  program.give("hand the userfaultfd to the keeper", uffd, ABI_CONSTANTS.GIFT_PAGED);
  program.call("wait for the pager", SYS.read, [gate, program.data(Buffer.alloc(GATE_BYTES)), GATE_BYTES], {
    expect: GATE_BYTES,
  });
  program.call("close the pager's gate", SYS.close, [gate]);
}
