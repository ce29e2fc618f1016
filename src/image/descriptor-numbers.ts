/**
 * Which number each call that opens something will return. The husk has nothing open below its own base but /dev/null on 0, 1 and 2, so the
 * compiler knows it; most objects land on their number at once, the others are moved.
 */
import { F_DUPFD_CLOEXEC, O_CLOEXEC, SYS } from "../linux/syscalls.js";
import type { Descriptor } from "./facts.js";
import type { Argument, ProgramBuilder } from "./program.js";

/** The descriptors that a program has made so far. */
export class DescriptorNumbers {
  private readonly open = new Set<number>([0, 1, 2]);
  private readonly cloexec: ReadonlyMap<number, boolean>;

  /** @param husk numbers from here on belong to the husk */
  constructor(
    private readonly program: ProgramBuilder,
    descriptors: readonly Descriptor[],
    private readonly husk: number,
  ) {
    this.cloexec = new Map(descriptors.map((one) => [one.fd, (one.flags & O_CLOEXEC) !== 0]));
  }

  private lowest(): number {
    let fd = 0;
    while (this.open.has(fd)) fd++;
    return fd;
  }

  /** What the image has that number made with. */
  flagOf(fd: number): number {
    return this.cloexec.get(fd) ? O_CLOEXEC : 0;
  }

  /** A call that returns one descriptor, which ends up on `fd`. */
  create(label: string, fd: number, nr: number, args: readonly Argument[]): void {
    const got = this.lowest();
    this.program.call(label, nr, args, { expect: got });
    if (got !== fd) this.program.install(label, got, fd, this.flagOf(fd) !== 0);
    this.open.add(fd);
  }

  /** A call that writes two descriptors to `at`; each goes to a number, or is closed. */
  createPair(
    label: string,
    nr: number,
    args: (at: bigint) => readonly Argument[],
    first: number | undefined,
    second: number | undefined,
  ): void {
    const at = this.program.data(Buffer.alloc(8));
    this.program.call(label, nr, args(at), { expect: 0 });
    const gotFirst = this.lowest();
    this.open.add(gotFirst);
    const gotSecond = this.lowest();
    this.open.add(gotSecond);
    this.program.load(`${label}: first end`, at, { expect: gotFirst });
    this.program.load(`${label}: second end`, at + 4n, { expect: gotSecond });
    if (gotFirst === first && gotSecond === second) return;
    const moved = [
      { from: gotFirst, to: first },
      { from: gotSecond, to: second },
    ].map(({ from, to }) => {
      if (from === to) return { from: undefined, to };
      if (to === undefined) {
        this.close(label, from);
        return { from: undefined, to };
      }
      // Out of the way first: the target of one end may be where the other one lies.
      const slot = this.program.slot();
      this.program.call(label, SYS.fcntl, [from, F_DUPFD_CLOEXEC, this.husk], { result: slot });
      this.close(label, from);
      return { from: slot, to };
    });
    for (const { from, to } of moved.reverse()) {
      if (from === undefined || to === undefined) continue;
      this.program.install(label, from, to, this.flagOf(to) !== 0);
      this.open.add(to);
      this.program.release(from);
    }
  }

  close(label: string, fd: number): void {
    this.program.call(`${label}: close`, SYS.close, [fd]);
    this.open.delete(fd);
  }

  /** The number is in use already. */
  taken(fd: number): void {
    this.open.add(fd);
  }

  isOpen(fd: number): boolean {
    return this.open.has(fd);
  }

  /** The image may have closed its standard descriptors. */
  closeSpare(wanted: ReadonlySet<number>): void {
    for (const fd of [0, 1, 2]) if (!wanted.has(fd)) this.close(`descriptor ${fd}`, fd);
  }

  duplicate(label: string, from: Argument, fd: number): void {
    this.program.call(label, SYS.dup3, [from, fd, this.flagOf(fd)], { expect: fd });
    this.open.add(fd);
  }
}
