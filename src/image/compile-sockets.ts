/** What a socket of an image is given behind its making: its options, and the bytes that lay unread in it. */
import { ABI_CONSTANTS } from "../linux/abi.js";
import { SYS } from "../linux/syscalls.js";
import type { Descriptor } from "./facts.js";
import type { ProgramBuilder } from "./program.js";

const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_ATTACH_FILTER = 26;
const INSTRUCTION_BYTES = 8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
/**
 * At most so much of one write goes into one buffer of the kernel's (net/unix/af_unix.c: what is left of a page, and 32 KiB of others). A buffer is taken as long
 * as less than the limit lies there, whatever its own size: so the last one should be a full one.
 */
const PIECE_BYTES = 4096 - 320 + 32_768;
/** The kernel cuts this down to `net.core.wmem_max`. */
const MOST_BYTES = 0x3fff_ffff;

type Socket = Extract<Descriptor, { kind: "unix" | "inet" }>;

/** Before it is bound: whether two sockets may share a port is among them. One that cannot be set leaves the socket as a new one. */
export function compileSocketOptions(program: ProgramBuilder, one: Socket): void {
  for (const { level, name, value } of one.options ?? []) {
    const given = level === SOL_SOCKET && name === SO_ATTACH_FILTER ? filterProgram(program, value) : value;
    const args = [one.fd, level, name, program.data(given), given.length];
    program.call(`option ${name} of socket ${one.fd}`, SYS.setsockopt, args, { mayFail: true });
  }
}

/** Once it has its other end: of datagrams, each is shut by itself. One that has none is shut all the same, and told ENOTCONN. */
export function compileShut(program: ProgramBuilder, { fd, shut }: Socket): void {
  if (shut !== undefined) program.call(`socket ${fd}: shut`, SYS.shutdown, [fd, shut - 1], { mayFail: true });
}

/** As struct sock_fprog: how many instructions, and where. */
function filterProgram(program: ProgramBuilder, instructions: Buffer): Buffer {
  const named = Buffer.alloc(16);
  named.writeUInt16LE(instructions.length / INSTRUCTION_BYTES, 0);
  named.writeBigUInt64LE(program.data(instructions), 8);
  return named;
}

/** Puts bytes into the socket that reads what `from` writes. Never waits: what does not fit fails the start. */
export function fillSocket(program: ProgramBuilder, label: string, from: number, bytes: Buffer): void {
  if (bytes.length === 0) return;
  if (bytes.length > ABI_CONSTANTS.SOCKET_QUEUE_LARGE) {
    const most = Buffer.alloc(4);
    most.writeInt32LE(MOST_BYTES);
    program.call(`${label}: room`, SYS.setsockopt, [from, SOL_SOCKET, SO_SNDBUF, program.data(most), most.length]);
  }
  const first = bytes.length % PIECE_BYTES;
  for (const part of [bytes.subarray(0, first), bytes.subarray(first)]) {
    if (part.length === 0) continue;
    const args = [from, program.data(part), part.length, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0];
    program.call(`${label}: its bytes`, SYS.sendto, args, { expect: part.length });
  }
}
