/** Who is told by a signal that a descriptor is ready (F_SETOWN, F_SETSIG, O_ASYNC). */
import { F_SETFL, O_APPEND, O_ASYNC, O_NONBLOCK, SYS } from "../linux/syscalls.js";
import type { Facts } from "./facts.js";
import type { ProgramBuilder } from "./program.js";

const F_SETSIG = 10;
const F_SETOWN_EX = 15;
const STATUS_FLAGS = O_NONBLOCK | O_APPEND | O_ASYNC;

/** Once there are all threads and the process is its own: a signal would find none of its handlers before. */
export function compileOwners(program: ProgramBuilder, { descriptors }: Facts): void {
  for (const { fd, flags, owner } of descriptors) {
    if (owner === undefined) continue;
    const label = `owner of descriptor ${fd}`;
    const bytes = Buffer.alloc(8);
    bytes.writeInt32LE(owner.type, 0);
    bytes.writeInt32LE(owner.number, 4);
    const at = program.data(bytes);
    if (owner.number === 0) {
      // The process and its main thread have another number in each clone.
      const own = program.slot();
      program.call(label, SYS.getpid, [], { result: own });
      program.poke(at + 4n, own, 4);
      program.release(own);
    }
    program.call(label, SYS.fcntl, [fd, F_SETOWN_EX, at]);
    program.call(label, SYS.fcntl, [fd, F_SETSIG, owner.signal]);
    program.call(label, SYS.fcntl, [fd, F_SETFL, flags & STATUS_FLAGS]);
  }
}
