/** Descriptors of an image as system calls, each on its number (descriptor-numbers.ts). */
import { assert, ThawError } from "../base/errors.js";
import {
  AT_FDCWD,
  F_DUPFD_CLOEXEC,
  F_SETFL,
  F_SETPIPE_SZ,
  O_ACCMODE,
  O_APPEND,
  O_CLOEXEC,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_NONBLOCK,
  O_RDWR,
  O_TMPFILE,
  O_TRUNC,
  SYS,
} from "../linux/syscalls.js";
import { type Channels, channelNumbers, touches } from "./channels.js";
import { compileLocks } from "./compile-locks.js";
import { memfdArguments, seal } from "./compile-memfd.js";
import { compileFiring, FIRES, firesAtOnce } from "./compile-oneshot.js";
import { compileShut, compileSocketOptions, fillSocket } from "./compile-sockets.js";
import { DescriptorNumbers } from "./descriptor-numbers.js";
import type { Descriptor } from "./facts.js";
import type { Argument, ProgramBuilder } from "./program.js";

const AF_UNIX = 1;
const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_STREAM = 1;
const SOL_SOCKET = 1;
const SO_LINGER = 13;
const EPOLL_CTL_ADD = 1;
const EFD_SEMAPHORE = 1;
const TFD_IOC_SET_TICKS = 0x40085400;
const DEFAULT_PIPE_BYTES = 65536;
const SHUT_WR = 1;
const F_SETFD = 2;
const FD_CLOEXEC = 1;
const EVENTFD_INITIAL_MAX = 0xffffffffn;
const STATUS_FLAGS = O_NONBLOCK | O_APPEND;

type Of<K extends Descriptor["kind"]> = Extract<Descriptor, { kind: K }>;

/** What {@link compileDescriptors} needs beside the builder. */
export interface DescriptorInputs {
  /**
   * The function's end of the fresh control socket, and the write end of the fresh log pipe. Absent for a husk that is parked: their
   * numbers are then held by /dev/null until {@link compileChannels}.
   */
  readonly channels: Channels | undefined;
  /** Numbers from here on belong to the husk. */
  readonly fdBase: number;
  /** Contents of deleted files, by position in the image's `tmp` file. */
  readonly contents: Buffer;
}

class DescriptorCompiler {
  readonly numbers: DescriptorNumbers;

  constructor(
    private readonly program: ProgramBuilder,
    private readonly inputs: DescriptorInputs,
    private readonly descriptors: readonly Descriptor[],
  ) {
    this.numbers = new DescriptorNumbers(program, descriptors, inputs.fdBase);
  }

  private statusFlags(one: Descriptor, had = 0): void {
    const wanted = one.flags & STATUS_FLAGS;
    if (wanted !== had) this.program.call(`flags of descriptor ${one.fd}`, SYS.fcntl, [one.fd, F_SETFL, wanted]);
  }

  /** A descriptor that is new for every start; /dev/null keeps its number meanwhile. */
  channel(one: Descriptor, fresh: Argument | undefined): void {
    if (fresh !== undefined) this.numbers.duplicate(`${one.kind} on descriptor ${one.fd}`, fresh, one.fd);
    else if (one.fd > 2) this.numbers.duplicate(`place of descriptor ${one.fd}`, 0, one.fd);
  }

  pipe(pipes: readonly Of<"pipe">[]): void {
    const reader = pipes.find((one) => one.end === "read");
    const writer = pipes.find((one) => one.end === "write");
    if (reader === undefined) {
      assert(writer !== undefined, "pipe without ends");
      if (writer.broken === 1) {
        const spare = this.inputs.fdBase - 1;
        this.numbers.createPair(
          `pipe behind descriptor ${writer.fd}`,
          SYS.pipe2,
          (at) => [at, this.numbers.flagOf(writer.fd)],
          spare,
          writer.fd,
        );
        this.numbers.close(`pipe behind descriptor ${writer.fd}`, spare);
        this.statusFlags(writer);
        return;
      }
      // Only write ends: stdout and stderr, whose reader is the keeper.
      this.channel(writer, this.inputs.channels?.log);
      return;
    }
    const label = `pipe behind descriptor ${reader.fd}`;
    const bytes = reader.bytes ?? Buffer.alloc(0);
    const both = reader.flags & O_NONBLOCK & ((writer?.flags ?? O_NONBLOCK) & O_NONBLOCK);
    const flags = both | this.numbers.flagOf(reader.fd);
    const writerFd = writer?.fd;
    // Bytes go in through the write end, which exists at least for this moment.
    const spare = writerFd ?? this.inputs.fdBase - 1;
    this.numbers.createPair(label, SYS.pipe2, (at) => [at, flags], reader.fd, spare);
    if (reader.capacity !== DEFAULT_PIPE_BYTES && reader.capacity > 0) {
      this.program.call(`${label}: capacity`, SYS.fcntl, [reader.fd, F_SETPIPE_SZ, reader.capacity], { mayFail: true });
    }
    if (bytes.length > 0)
      this.program.call(`${label}: its bytes`, SYS.write, [spare, this.program.data(bytes), bytes.length], {
        expect: bytes.length,
      });
    if (writerFd === undefined) this.numbers.close(label, spare);
    else if (writer !== undefined) {
      this.statusFlags(writer, both);
      this.fixCloexec(writerFd, flags);
    }
    this.statusFlags(reader, both);
  }

  /** A pair is made with one flag for both ends. */
  private fixCloexec(fd: number, madeWith: number): void {
    const wanted = this.numbers.flagOf(fd);
    if (wanted !== (madeWith & O_CLOEXEC))
      this.program.call(`flags of descriptor ${fd}`, SYS.fcntl, [fd, F_SETFD, wanted ? FD_CLOEXEC : 0]);
  }

  unixPair(one: Of<"unix">, peer: Of<"unix"> | undefined): void {
    const label = `unix socket on descriptor ${one.fd}`;
    if (one.idle === 1) {
      this.numbers.create(label, one.fd, SYS.socket, [AF_UNIX, one.type | this.numbers.flagOf(one.fd), 0]);
      compileSocketOptions(this.program, one);
      this.statusFlags(one);
      return;
    }
    const flags = one.type | this.numbers.flagOf(one.fd);
    const spare = peer?.fd ?? this.inputs.fdBase - 1;
    this.numbers.createPair(label, SYS.socketpair, (at) => [AF_UNIX, flags, 0, at], one.fd, spare);
    fillSocket(this.program, label, spare, one.bytes);
    if (peer === undefined) this.numbers.close(label, spare);
    else {
      fillSocket(this.program, label, one.fd, peer.bytes);
      compileSocketOptions(this.program, peer);
      if (one.readShut === 1) this.program.call(`${label}: nothing more to read`, SYS.shutdown, [peer.fd, SHUT_WR]);
      if (peer.readShut === 1) this.program.call(`${label}: nothing more to write`, SYS.shutdown, [one.fd, SHUT_WR]);
      compileShut(this.program, peer);
      this.statusFlags(peer);
      this.fixCloexec(peer.fd, flags);
    }
    compileSocketOptions(this.program, one);
    compileShut(this.program, one);
    this.statusFlags(one);
  }

  inet(one: Of<"inet">): void {
    const label = `network socket on descriptor ${one.fd}`;
    if (one.state === "connection") {
      this.resetConnection(label, one);
      return;
    }
    this.numbers.create(label, one.fd, SYS.socket, [one.domain, one.type | this.numbers.flagOf(one.fd), 0]);
    compileSocketOptions(this.program, one);
    const port = one.local.length >= 4 ? one.local.readUInt16BE(2) : 0;
    if (port !== 0) this.program.call(`${label}: bind`, SYS.bind, [one.fd, this.program.data(one.local), one.local.length]);
    if (one.remote !== undefined)
      this.program.call(`${label}: connect`, SYS.connect, [one.fd, this.program.data(one.remote), one.remote.length]);
    compileShut(this.program, one);
    this.statusFlags(one);
  }

  /** A connection to nowhere: made on loopback and reset by its other end, so that the next read or write says ECONNRESET or EPIPE. */
  private resetConnection(label: string, one: Of<"inet">): void {
    const program = this.program;
    const address = Buffer.alloc(one.domain === AF_INET6 ? 28 : 16);
    address.writeUInt16LE(one.domain, 0);
    if (one.domain === AF_INET6) address[8 + 15] = 1;
    else {
      assert(one.domain === AF_INET, "connection of an unknown address family");
      address.writeUInt32BE(0x7f000001, 4);
    }
    const at = program.data(address);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(address.length);
    const lengthAt = program.data(length);
    const linger = Buffer.alloc(8);
    linger.writeUInt32LE(1, 0);
    const base = this.inputs.fdBase;
    const listener = program.slot();
    const accepted = program.slot();
    const temporary = program.slot();
    const flags = SOCK_STREAM | O_CLOEXEC;
    program.call(`${label}: listener`, SYS.socket, [one.domain, flags, 0], { result: temporary });
    program.call(`${label}: listener`, SYS.fcntl, [temporary, F_DUPFD_CLOEXEC, base], { result: listener });
    program.call(`${label}: listener`, SYS.close, [temporary]);
    program.call(`${label}: listener`, SYS.bind, [listener, at, address.length]);
    program.call(`${label}: listener`, SYS.listen, [listener, 1]);
    program.call(`${label}: listener`, SYS.getsockname, [listener, at, lengthAt]);
    this.numbers.create(label, one.fd, SYS.socket, [one.domain, SOCK_STREAM | this.numbers.flagOf(one.fd), 0]);
    program.call(`${label}: connect`, SYS.connect, [one.fd, at, address.length]);
    program.call(`${label}: accept`, SYS.accept4, [listener, 0, 0, O_CLOEXEC], { result: accepted });
    program.call(`${label}: reset`, SYS.setsockopt, [accepted, SOL_SOCKET, SO_LINGER, program.data(linger), 8]);
    program.call(`${label}: reset`, SYS.close, [accepted]);
    program.call(`${label}: reset`, SYS.close, [listener]);
    program.release(temporary);
    program.release(accepted);
    program.release(listener);
    this.statusFlags(one);
  }

  file(one: Of<"file">): void {
    const label = `file ${one.path} on descriptor ${one.fd}`;
    if (one.deleted === undefined) {
      const flags = one.flags & ~(O_CREAT | O_EXCL | O_TRUNC);
      this.numbers.create(label, one.fd, SYS.openat, [AT_FDCWD, this.program.text(one.path), flags, 0]);
    } else if (one.of !== undefined) {
      const access = (one.flags & O_ACCMODE) | this.numbers.flagOf(one.fd);
      this.numbers.create(label, one.fd, SYS.openat, [AT_FDCWD, this.program.text(`/proc/self/fd/${one.of}`), access, 0]);
      this.statusFlags(one);
    } else {
      const bytes = this.inputs.contents.subarray(one.at ?? 0, (one.at ?? 0) + (one.bytes ?? 0));
      const access = O_RDWR | this.numbers.flagOf(one.fd);
      if (one.memfd === 1)
        this.numbers.create(
          label,
          one.fd,
          SYS.memfd_create,
          memfdArguments(this.program, one, this.numbers.flagOf(one.fd) !== 0),
        );
      else this.numbers.create(label, one.fd, SYS.openat, [AT_FDCWD, this.program.text("/tmp"), O_TMPFILE | access, one.mode]);
      if (bytes.length > 0)
        this.program.call(`${label}: its bytes`, SYS.write, [one.fd, this.program.data(bytes), bytes.length], {
          expect: bytes.length,
        });
      seal(this.program, label, one);
      this.statusFlags(one);
    }
    if (one.pos !== 0n || one.deleted !== undefined) this.program.call(`${label}: position`, SYS.lseek, [one.fd, one.pos, 0]);
  }

  /** A count of more than 32 bits has to be written. */
  eventfd(one: Of<"eventfd">): void {
    const flags = (one.flags & (O_NONBLOCK | O_CLOEXEC)) | (one.semaphore ? EFD_SEMAPHORE : 0);
    const large = one.count > EVENTFD_INITIAL_MAX;
    this.numbers.create(`eventfd ${one.fd}`, one.fd, SYS.eventfd2, [large ? 0 : one.count, flags]);
    if (!large) return;
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(one.count);
    this.program.call(`eventfd ${one.fd}: count`, SYS.write, [one.fd, this.program.data(bytes), 8], { expect: 8 });
  }

  timer(one: Of<"timerfd">): void {
    this.numbers.create(`timer on descriptor ${one.fd}`, one.fd, SYS.timerfd_create, [
      one.clock,
      one.flags & (O_NONBLOCK | O_CLOEXEC),
    ]);
  }

  /** Timers run from the moment of the start, not while a husk is parked. */
  armTimer(one: Of<"timerfd">): void {
    const spec = Buffer.alloc(32);
    // One that expired behind the question for its count stands still: it goes on an interval later.
    const still = one.ticks > 0 && one.value[0] === 0 && one.value[1] === 0;
    const times = [...one.interval, ...(still ? one.interval : one.value)];
    for (const [index, time] of times.entries()) spec.writeBigInt64LE(BigInt(time), index * 8);
    const label = `timer on descriptor ${one.fd}`;
    this.program.call(`${label}: settime`, SYS.timerfd_settime, [one.fd, 0, this.program.data(spec), 0]);
    if (one.ticks === 0) return;
    // Behind the times, by which the count begins anew.
    const ticks = Buffer.alloc(8);
    ticks.writeBigUInt64LE(BigInt(one.ticks));
    this.program.call(`${label}: its count`, SYS.ioctl, [one.fd, TFD_IOC_SET_TICKS, this.program.data(ticks)]);
  }

  /** Of an epoll that has none yet. */
  epollEntries(one: Of<"epoll">, wanted: (entry: Of<"epoll">["entries"][number]) => boolean): void {
    const entries = one.entries.filter(wanted);
    const fired = entries.filter((entry) => firesAtOnce(entry, this.descriptors));
    this.addEntries(one, fired, FIRES);
    if (fired.length > 0) compileFiring(this.program, one.fd, fired.length);
    const others = entries.filter((entry) => !fired.includes(entry));
    this.addEntries(one, others);
  }

  /** Those whose number is closed, or means another file by now, are made under that number while it is borrowed. */
  addEntries(one: Of<"epoll">, entries: Of<"epoll">["entries"], more = 0): void {
    for (const entry of entries) {
      const label = `epoll entry ${entry.fd} of descriptor ${one.fd}`;
      const event = Buffer.alloc(12);
      event.writeUInt32LE((entry.events | more) >>> 0, 0);
      event.writeBigUInt64LE(entry.data, 4);
      const add = (): void =>
        this.program.call(label, SYS.epoll_ctl, [one.fd, EPOLL_CTL_ADD, entry.fd, this.program.data(event)]);
      if (entry.fd === entry.file) {
        add();
        continue;
      }
      const saved = this.numbers.isOpen(entry.fd) ? this.program.slot() : undefined;
      if (saved !== undefined)
        this.program.call(label, SYS.fcntl, [entry.fd, F_DUPFD_CLOEXEC, this.inputs.fdBase], { result: saved });
      this.program.call(label, SYS.dup3, [entry.file, entry.fd, O_CLOEXEC], { expect: entry.fd });
      add();
      if (saved === undefined) this.program.call(label, SYS.close, [entry.fd]);
      else {
        this.program.install(label, saved, entry.fd, this.numbers.flagOf(entry.fd) !== 0);
        this.program.release(saved);
      }
    }
  }
}

/** Emits the calls that give a husk the descriptors of the image. */
export function compileDescriptors(program: ProgramBuilder, descriptors: readonly Descriptor[], inputs: DescriptorInputs): void {
  const compiler = new DescriptorCompiler(program, inputs, descriptors);
  const { numbers } = compiler;
  const sorted = [...descriptors].sort((a, b) => a.fd - b.fd);
  const done = new Set<number>();
  for (const one of sorted) {
    if (done.has(one.fd)) continue;
    done.add(one.fd);
    switch (one.kind) {
      case "control":
        compiler.channel(one, inputs.channels?.control);
        break;
      case "pipe": {
        const ends = sorted.filter((other): other is Of<"pipe"> => other.kind === "pipe" && other.inode === one.inode);
        for (const end of ends) done.add(end.fd);
        if (ends.filter((end) => end.end === one.end).length > 1) {
          throw new ThawError("FREEZE_REFUSED", { what: `descriptor ${one.fd} is a pipe that was opened twice through /proc` });
        }
        compiler.pipe(ends);
        break;
      }
      case "unix": {
        const peer = sorted.find(
          (other): other is Of<"unix"> =>
            other.kind === "unix" && one.peer !== 0 && other.inode === one.peer && other.fd !== one.fd,
        );
        if (peer !== undefined) done.add(peer.fd);
        compiler.unixPair(one, peer);
        break;
      }
      case "device":
        if (one.fd > 2 || one.path !== "/dev/null")
          numbers.create(`device ${one.path}`, one.fd, SYS.openat, [AT_FDCWD, program.text(one.path), one.flags, 0]);
        break;
      case "directory":
        numbers.create(`directory ${one.path}`, one.fd, SYS.openat, [
          AT_FDCWD,
          program.text(one.path),
          one.flags | O_DIRECTORY,
          0,
        ]);
        if (one.pos !== 0n && !`${one.path}/`.startsWith("/tmp/"))
          program.call(`directory ${one.path}: position`, SYS.lseek, [one.fd, one.pos, 0]);
        break;
      case "file":
        compiler.file(one);
        break;
      case "eventfd":
        compiler.eventfd(one);
        break;
      case "signalfd": {
        const mask = Buffer.alloc(8);
        mask.writeBigUInt64LE(one.mask);
        numbers.create(`signalfd ${one.fd}`, one.fd, SYS.signalfd4, [
          -1,
          program.data(mask),
          8,
          one.flags & (O_NONBLOCK | O_CLOEXEC),
        ]);
        break;
      }
      case "inotify":
        numbers.create(`inotify ${one.fd}`, one.fd, SYS.inotify_init1, [one.flags & (O_NONBLOCK | O_CLOEXEC)]);
        break;
      case "timerfd":
        compiler.timer(one);
        break;
      case "epoll":
        numbers.create(`epoll ${one.fd}`, one.fd, SYS.epoll_create1, [one.flags & O_CLOEXEC]);
        break;
      case "inet":
        compiler.inet(one);
        break;
      case "same":
        break;
    }
  }
  const late = channelNumbers(sorted);
  for (const one of sorted) {
    if (one.kind !== "same") continue;
    if (inputs.channels === undefined && late.has(one.fd)) compiler.channel(one, undefined);
    else numbers.duplicate(`descriptor ${one.fd}, the same as ${one.as}`, one.as, one.fd);
  }
  numbers.closeSpare(new Set(sorted.map(({ fd }) => fd)));
  for (const one of sorted) if (one.kind === "file") compileLocks(program, one);
  if (inputs.channels !== undefined) for (const one of sorted) if (one.kind === "timerfd") compiler.armTimer(one);
  for (const one of sorted)
    if (one.kind === "epoll") compiler.epollEntries(one, (entry) => inputs.channels !== undefined || !touches(entry, late));
}

/** For a husk that was parked: what compileDescriptors left out. */
export function compileChannels(
  program: ProgramBuilder,
  descriptors: readonly Descriptor[],
  channels: Channels,
  base: number,
): void {
  const compiler = new DescriptorCompiler(program, { channels, fdBase: base, contents: Buffer.alloc(0) }, descriptors);
  const { numbers } = compiler;
  const late = channelNumbers(descriptors);
  for (const one of descriptors) numbers.taken(one.fd);
  for (const one of descriptors) {
    if (one.kind === "control") compiler.channel(one, channels.control);
    else if (one.kind === "pipe" && late.has(one.fd)) compiler.channel(one, channels.log);
  }
  for (const one of descriptors)
    if (one.kind === "same" && late.has(one.fd)) numbers.duplicate(`descriptor ${one.fd}, the same as ${one.as}`, one.as, one.fd);
  for (const one of descriptors) if (one.kind === "timerfd") compiler.armTimer(one);
  for (const one of descriptors) {
    if (one.kind !== "epoll") continue;
    const left = one.entries.filter((entry) => touches(entry, late));
    compiler.addEntries(one, left);
  }
}
