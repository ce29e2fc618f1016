/**
 * Programs: flat lists of system calls that a husk executes (native/husk-program.c). A program is a cache, compiled from the
 * manifest for one husk version; it can always be thrown away.
 *
 * Layout: `program_header`, data (paths, structs, signal frames; absolute addresses, because the header says
 * where the husk maps it), then `program_op`s. Behind the resume nobody reads it but threads that may still return through their frames:
 * the husk drops all pages without such. A `Slot` argument is filled in by the husk: descriptors that came with the
 * program (0–63), parameters (64–71), results of earlier operations (80–255).
 */
import { assert } from "../base/errors.js";
import { ABI_CONSTANTS, fieldOffset, HUSK_VERSION, structBytes, writeStruct } from "../linux/abi.js";

/** A value that is known only when the program runs. `plus` is added to it. */
export interface Slot {
  readonly slot: number;
  readonly plus?: number;
}

export type Argument = number | bigint | Slot;

/** A compiled program, and for each operation what it does, for error messages. */
export interface Program {
  readonly bytes: Buffer;
  readonly labels: readonly string[];
}

/** How one system call is treated. */
export interface CallOptions {
  /** Where the result goes. */
  readonly result?: Slot;
  /** The program goes on when the call fails. */
  readonly mayFail?: boolean;
  /** The program fails when the result is another. */
  readonly expect?: number;
}

/** Behind those of the descriptors. */
const FIRST_RESULT_SLOT = ABI_CONSTANTS.HUSK_FDS_MAX;
const DATA_AT = 64;
const OP_BYTES = structBytes("program_op");
const AT = {
  kind: fieldOffset("program_op", "kind"),
  slotMask: fieldOffset("program_op", "slot_mask"),
  resultSlot: fieldOffset("program_op", "result_slot"),
  flags: fieldOffset("program_op", "flags"),
  nr: fieldOffset("program_op", "nr"),
  expect: fieldOffset("program_op", "expect"),
  args: fieldOffset("program_op", "args"),
} as const;
const WORD = 2 ** 32;
const OPS_AT_ONCE = 256;
/** What is added to a slot's value lies above its number. */
const SLOT_VALUES = 256;

/** The descriptor that came with the program at `index`. */
export function passed(index: number): Slot {
  return { slot: index };
}

/** Collects operations and data; {@link ProgramBuilder.build} lays them out. */
export class ProgramBuilder {
  private readonly labels: string[] = [];
  /** Operations as the husk reads them, in pieces of {@link OPS_AT_ONCE}, the last with room for more. */
  private readonly operations: Buffer[] = [];
  private view = new DataView(new ArrayBuffer(0));
  private readonly chunks: Buffer[] = [];
  private dataBytes = DATA_AT;
  private keptFrom = 0;
  private keptEnd = 0;
  private nextSlot = FIRST_RESULT_SLOT;

  /** @param base where the husk shall map it */
  constructor(private readonly base: bigint = ABI_CONSTANTS.HUSK_PROGRAM_AT) {}

  /** A fresh slot for a result. Slots are few: use {@link release} for short-lived ones. */
  slot(): Slot {
    assert(this.nextSlot < ABI_CONSTANTS.HUSK_SLOTS, "program has too many result slots");
    return { slot: this.nextSlot++ };
  }

  /** Gives back the slot that was taken last. */
  release(slot: Slot): void {
    assert(slot.slot === this.nextSlot - 1, "slots are released in reverse order");
    this.nextSlot--;
  }

  /** Places bytes in the program and returns the address that they will have. */
  data(bytes: Uint8Array, alignment = 8): bigint {
    const padding = (alignment - (this.dataBytes % alignment)) % alignment;
    if (padding > 0) this.chunks.push(Buffer.alloc(padding));
    const at = this.dataBytes + padding;
    this.chunks.push(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength));
    this.dataBytes = at + bytes.byteLength;
    return this.base + BigInt(at);
  }

  /** As {@link data}, for what is read once the process is resumed. */
  keptData(bytes: Uint8Array, alignment = 8): bigint {
    const address = this.data(bytes, alignment);
    this.keptEnd = this.dataBytes;
    if (this.keptFrom === 0) this.keptFrom = this.keptEnd - bytes.byteLength;
    return address;
  }

  /** A NUL-terminated string. */
  text(value: string): bigint {
    return this.data(Buffer.from(`${value}\0`), 1);
  }

  /** An array of pointers ending in NULL, as execve wants it. */
  pointers(addresses: readonly bigint[]): bigint {
    const bytes = Buffer.alloc((addresses.length + 1) * 8);
    for (const [index, address] of addresses.entries()) bytes.writeBigUInt64LE(address, index * 8);
    return this.data(bytes);
  }

  /** One system call by number. */
  call(label: string, nr: number, args: readonly Argument[], options: CallOptions = {}): void {
    this.push(ABI_CONSTANTS.OP_SYSCALL, label, args, options, nr);
  }

  /** Notes the time under `index` (1–15; 0 is the arrival of the program). */
  stamp(index: number): void {
    this.push(ABI_CONSTANTS.OP_STAMP, "stamp", [index]);
  }

  /** Moves a descriptor to its number and closes the old one. */
  install(label: string, fd: Argument, target: number, cloexec: boolean): void {
    this.push(ABI_CONSTANTS.OP_INSTALL, label, [fd, target, cloexec ? 1 : 0]);
  }

  /** Writes 4 or 8 bytes to an address of the process. */
  poke(address: Argument, value: Argument, bytes: 4 | 8): void {
    this.push(ABI_CONSTANTS.OP_POKE, "poke", [address, value, bytes]);
  }

  /** Reads 4 bytes from an address, as a result. */
  load(label: string, address: Argument, options: CallOptions): void {
    this.push(ABI_CONSTANTS.OP_LOAD, label, [address], options);
  }

  /** Fails with ESTALE when the file behind `fd` is not the one described. */
  identity(label: string, fd: Argument, identity: bigint): void {
    this.push(ABI_CONSTANTS.OP_IDENTITY, label, [fd, identity]);
  }

  /** @param waits whether it goes on only when {@link releaseThreads} lets it */
  thread(label: string, state: bigint, waits: boolean): void {
    this.push(ABI_CONSTANTS.OP_THREAD, label, [state, waits ? 1 : 0]);
  }

  /** Makes threads that {@link thread} then only has to name. For pooled husks. */
  spareThreads(count: number): void {
    this.push(ABI_CONSTANTS.OP_SPARES, "spare threads", [count]);
  }

  /** Lets threads go on that {@link thread} named; those that wait only with `waiting`. Spare ones that nobody needed end. */
  releaseThreads(waiting: boolean): void {
    this.push(ABI_CONSTANTS.OP_RELEASE, "release threads", [waiting ? 1 : 0]);
  }

  /** The process becomes the function; nothing after this runs. */
  resume(state: bigint): void {
    this.push(ABI_CONSTANTS.OP_RESUME, "resume", [state]);
  }

  /** Makes the kernel copy these pages: one writing touch each. They must be mapped and writable. */
  touch(label: string, pages: readonly bigint[]): void {
    const list = Buffer.alloc(pages.length * 8);
    for (const [index, address] of pages.entries()) list.writeBigUInt64LE(address, index * 8);
    this.push(ABI_CONSTANTS.OP_TOUCH, label, [this.data(list), pages.length]);
  }

  /** Hands a descriptor to the keeper (`kind`: GIFT_…), which holds it for this instance, and closes it here. */
  give(label: string, fd: Argument, kind: number = ABI_CONSTANTS.GIFT_KEPT): void {
    this.push(ABI_CONSTANTS.OP_GIVE, label, [fd, kind]);
  }

  /** A resource limit; where this machine has lower ones, those hold. */
  limit(resource: number, soft: bigint, hard: bigint): void {
    this.push(ABI_CONSTANTS.OP_LIMIT, `resource limit ${resource}`, [resource, soft, hard]);
  }

  /** Tells the keeper that all that can fail is done. */
  report(): void {
    this.push(ABI_CONSTANTS.OP_REPORT, "report", []);
  }

  /** Lays the program out. */
  build(): Program {
    const opsAt = Math.ceil(this.dataBytes / 64) * 64;
    const total = opsAt + this.labels.length * OP_BYTES;
    assert(BigInt(total) <= ABI_CONSTANTS.HUSK_PROGRAM_BYTES_MAX, "program is too large");
    const bytes = Buffer.alloc(total);
    writeStruct(bytes, 0, "program_header", {
      magic: ABI_CONSTANTS.PROGRAM_MAGIC,
      version: HUSK_VERSION,
      op_count: this.labels.length,
      ops_at: opsAt,
      total_bytes: total,
      base: this.base,
      kept_from: this.keptFrom,
      kept_end: this.keptEnd,
    });
    let at = DATA_AT;
    for (const chunk of this.chunks) {
      chunk.copy(bytes, at);
      at += chunk.length;
    }
    for (const [index, operations] of this.operations.entries()) operations.copy(bytes, opsAt + index * operations.length);
    return { bytes, labels: this.labels };
  }

  /** At fixed offsets, and not by writeStruct, which takes ten times as long: an image of 32,000 mappings has a hundred thousand operations. */
  private push(kind: number, label: string, args: readonly Argument[], options: CallOptions = {}, nr = 0): void {
    const at = (this.labels.length % OPS_AT_ONCE) * OP_BYTES;
    this.labels.push(label);
    if (at === 0) {
      const more = Buffer.alloc(OPS_AT_ONCE * OP_BYTES);
      this.operations.push(more);
      this.view = new DataView(more.buffer, more.byteOffset, more.length);
    }
    const { view } = this;
    let mask = 0;
    let to = at + AT.args;
    let bit = 1;
    for (const argument of args) {
      if (typeof argument === "bigint") view.setBigUint64(to, argument, true);
      else if (typeof argument === "number") writeNumber(view, to, argument);
      else {
        mask |= bit;
        writeNumber(view, to, argument.slot + (argument.plus ?? 0) * SLOT_VALUES);
      }
      to += 8;
      bit <<= 1;
    }
    const flags =
      (options.mayFail ? ABI_CONSTANTS.OP_FLAG_MAY_FAIL : 0) | (options.expect === undefined ? 0 : ABI_CONSTANTS.OP_FLAG_EXPECT);
    view.setUint16(at + AT.kind, kind, true);
    view.setUint16(at + AT.slotMask, mask, true);
    view.setUint16(at + AT.resultSlot, options.result?.slot ?? ABI_CONSTANTS.NO_SLOT, true);
    view.setUint16(at + AT.flags, flags, true);
    view.setUint32(at + AT.nr, nr, true);
    view.setUint32(at + AT.expect, options.expect ?? 0, true);
  }
}

/** 64 bits, of a negative one too. */
function writeNumber(view: DataView, at: number, value: number): void {
  view.setUint32(at, value, true);
  view.setInt32(at + 4, Math.floor(value / WORD), true);
}
