/**
 * Memory that the pager fills (native/space.c): the husk makes a userfaultfd, gives it away together with a gate, and waits at the gate
 * until the pager has registered its regions and installed what was recorded. It is a full userfaultfd: faults that the kernel takes for
 * the function, in read(2) or most of futex(2), are served like its own.
 */
import { PAGE_BYTES } from "../base/units.js";
import { ABI_CONSTANTS } from "../linux/abi.js";
import { EFD_CLOEXEC, F_DUPFD_CLOEXEC, MADV_POPULATE_WRITE, O_CLOEXEC, O_NONBLOCK, SYS } from "../linux/syscalls.js";
import { USERFAULTFD_IOC_NEW } from "../linux/userfaultfd.js";
import { isMemory } from "./compile-memory.js";
import type { Region, ThreadFacts } from "./facts.js";
import { register } from "./frame.js";
import type { ProgramBuilder, Slot } from "./program.js";

const GATE_BYTES = 8;
const PAGE_MASK = ~BigInt(PAGE_BYTES - 1);
/** Without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME. */
const FUTEX_COMMANDS = 0x7fn;
const FUTEX_LOCK_PI = 6n;
const FUTEX_LOCK_PI2 = 13n;

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

/**
 * Threads that wait for a lock with priority inheritance call the kernel again, which writes to the lock. It looks for the page in a way that cannot wait for the pager
 * (fixup_user_fault without FAULT_FLAG_ALLOW_RETRY), and would answer EFAULT: the C library ends the process then. Who locks anew has touched the page itself before.
 */
export function bringLocks(program: ProgramBuilder, threads: readonly ThreadFacts[]): void {
  for (const thread of threads) {
    const command = register(thread, "rsi") & FUTEX_COMMANDS;
    if (register(thread, "rax") !== BigInt(SYS.futex) || (command !== FUTEX_LOCK_PI && command !== FUTEX_LOCK_PI2)) continue;
    const page = register(thread, "rdi") & PAGE_MASK;
    program.call(`bring the lock of thread ${thread.name}`, SYS.madvise, [page, PAGE_BYTES, MADV_POPULATE_WRITE], {
      mayFail: true,
    });
  }
}
