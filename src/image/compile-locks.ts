/** The locks that a process held on open files. */
import { SYS } from "../linux/syscalls.js";
import type { Descriptor } from "./facts.js";
import type { ProgramBuilder } from "./program.js";

const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;
/** How to lock bytes of a file, by the name that the kernel gives to the kind of lock. */
const F_SETLK: Readonly<Record<string, number>> = { POSIX: 6, OFDLCK: 37 };
const F_RDLCK = 0;
const F_WRLCK = 1;

/**
 * Once all descriptors have their numbers: moving one closes one, and by that the process loses all its locks of bytes of that file. Outside of /tmp, a clone
 * may find locked what another one holds, as two processes would.
 */
export function compileLocks(program: ProgramBuilder, one: Extract<Descriptor, { kind: "file" }>): void {
  const label = `lock of file ${one.path} on descriptor ${one.fd}`;
  const options = { mayFail: !one.path.startsWith("/tmp/") };
  for (const lock of one.locks ?? []) {
    const command = F_SETLK[lock.type];
    if (command === undefined) {
      program.call(label, SYS.flock, [one.fd, (lock.write ? LOCK_EX : LOCK_SH) | LOCK_NB], options);
      continue;
    }
    const bytes = Buffer.alloc(32);
    bytes.writeInt16LE(lock.write ? F_WRLCK : F_RDLCK, 0);
    bytes.writeBigInt64LE(lock.start, 8);
    bytes.writeBigInt64LE(lock.bytes, 16);
    program.call(label, SYS.fcntl, [one.fd, command, program.data(bytes)], options);
  }
}
