/** Which descriptors of an image are new for every start: the control socket, the log pipe, and duplicates of them. */
import type { Descriptor } from "./facts.js";
import type { Argument } from "./program.js";

/** The function's control socket. */
export const CONTROL_FD = 3;

/** Descriptors that are new for every start. */
export interface Channels {
  readonly control: Argument;
  readonly log: Argument;
}

/** What an epoll watches. */
export type EpollEntry = Extract<Descriptor, { kind: "epoll" }>["entries"][number];

/** Whether an epoll entry watches one of these numbers. */
export function touches(entry: EpollEntry, numbers: ReadonlySet<number>): boolean {
  return numbers.has(entry.fd) || numbers.has(entry.file);
}

/** Numbers behind which lies the control socket, the log pipe, or a duplicate of them. */
export function channelNumbers(descriptors: readonly Descriptor[]): Set<number> {
  const readable = new Set(descriptors.flatMap((one) => (one.kind === "pipe" && one.end === "read" ? [one.inode] : [])));
  const numbers = new Set<number>();
  for (const one of descriptors)
    if (one.kind === "control" || (one.kind === "pipe" && !readable.has(one.inode) && one.broken !== 1)) numbers.add(one.fd);
  for (const one of descriptors) if (one.kind === "same" && numbers.has(one.as)) numbers.add(one.fd);
  return numbers;
}
