/**
 * One-shot entries of an epoll that have fired (EPOLLONESHOT) tell nothing until they are armed again. The kernel adds EPOLLERR and EPOLLHUP to
 * whatever an entry is made with, so one that was made with nothing would tell that the other end was closed. Firing alone disarms: such an
 * entry is made for what is the case already, and fires before anybody waits.
 */
import { PAGE_BYTES } from "../base/units.js";
import { SYS } from "../linux/syscalls.js";
import type { EpollEntry } from "./channels.js";
import type { Descriptor } from "./facts.js";
import type { ProgramBuilder } from "./program.js";

const EPOLLIN = 0x1;
const EPOLLOUT = 0x4;
const EPOLLONESHOT = 0x4000_0000;
/** What the kernel leaves of an entry that has fired: those that are no events (EPOLLEXCLUSIVE to EPOLLET). */
const NO_EVENTS = 0xf000_0000;
const EVENT_BYTES = 12;

/** What an entry that has fired is made for. */
export const FIRES = EPOLLIN | EPOLLOUT;

/** Whether it has fired, and what it watches can be read or written, or is closed, in each clone from the beginning. An empty pipe is neither. */
export function firesAtOnce({ events, file }: EpollEntry, descriptors: readonly Descriptor[]): boolean {
  if ((events & EPOLLONESHOT) === 0 || (events & ~NO_EVENTS) !== 0) return false;
  const named = descriptors.find(({ fd }) => fd === file);
  const watched = named?.kind === "same" ? descriptors.find(({ fd }) => fd === named.as) : named;
  if (watched?.kind === "inet") return true;
  if (watched?.kind === "unix") {
    const peer = descriptors.find((one) => one.kind === "unix" && watched.peer !== 0 && one.inode === watched.peer);
    return peer?.kind !== "unix" || peer.bytes.length === 0 || watched.bytes.length > 0;
  }
  if (watched?.kind !== "pipe") return false;
  const other = descriptors.find((one) => one.kind === "pipe" && one.inode === watched.inode && one.end !== watched.end);
  if (watched.end === "read") return other === undefined || (watched.bytes?.length ?? 0) > 0;
  if (other?.kind === "pipe") return (other.bytes?.length ?? 0) + PAGE_BYTES <= other.capacity;
  return watched.broken === 1;
}

/** Lets so many entries fire, which are all that the epoll has. */
export function compileFiring(program: ProgramBuilder, epoll: number, count: number): void {
  const label = `epoll of descriptor ${epoll}: its entries that have fired`;
  const told = program.data(Buffer.alloc(count * EVENT_BYTES));
  program.call(label, SYS.epoll_wait, [epoll, told, count, 0], { expect: count });
}
