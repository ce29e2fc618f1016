/**
 * A time namespace, for the one case where the monotonic clock would run backward: an image thawed after a reboot, or
 * on another machine. The clock then goes on from where the image was frozen plus the wall-clock time since. Within one boot the clock
 * only moves forward and no namespace is made. Must run while the husk is single-threaded and still capable.
 */
import { AT_FDCWD, O_CLOEXEC, SYS } from "../linux/syscalls.js";
import { type Program, ProgramBuilder } from "./program.js";

const CLONE_NEWTIME = 0x80;
const NS_PER_S = 1_000_000_000n;

/** Shifts CLOCK_MONOTONIC and CLOCK_BOOTTIME of the husk by these nanoseconds. */
export function compileTime(monotonicNs: bigint, boottimeNs: bigint): Program {
  const program = new ProgramBuilder();
  const line = (clock: string, ns: bigint): string => {
    const seconds = ns >= 0n ? ns / NS_PER_S : -((-ns + NS_PER_S - 1n) / NS_PER_S);
    return `${clock} ${seconds} ${ns - seconds * NS_PER_S}\n`;
  };
  const text = Buffer.from(line("monotonic", monotonicNs) + line("boottime", boottimeNs));
  const fd = program.slot();
  program.call("new time namespace", SYS.unshare, [CLONE_NEWTIME]);
  program.call("open timens_offsets", SYS.openat, [AT_FDCWD, program.text("/proc/self/timens_offsets"), 1 | O_CLOEXEC, 0], {
    result: fd,
  });
  program.call("write timens_offsets", SYS.write, [fd, program.data(text), text.length], { expect: text.length });
  program.call("close timens_offsets", SYS.close, [fd]);
  program.call("open the time namespace", SYS.openat, [AT_FDCWD, program.text("/proc/self/ns/time_for_children"), O_CLOEXEC, 0], {
    result: fd,
  });
  program.call("enter the time namespace", SYS.setns, [fd, CLONE_NEWTIME]);
  program.call("close the time namespace", SYS.close, [fd]);
  program.release(fd);
  return program.build();
}
