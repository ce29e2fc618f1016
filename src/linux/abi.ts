/**
 * The bytes that TypeScript and C share, described once. `scripts/build.mjs` turns this file into
 * `native/build/abi.h` (constants, packed-free structs, static asserts on every size and offset), so the two
 * sides cannot drift. All integers are little-endian; fields are naturally aligned by construction and the
 * layout function refuses a description that would need padding.
 */

/** Bumped when a program compiled for an older husk would not run: programs are then compiled anew. */
export const HUSK_VERSION = 14;

/** Integer constants visible to C under the same names. */
export const ABI_CONSTANTS = {
  HUSK_VERSION,
  /** The husk's own addresses. What every clone keeps pages of lies in the first 2 MiB, for which one page table does. */
  HUSK_ZONE_START: 0x10_0000_0000n,
  HUSK_ZONE_END: 0x10_4000_0000n,
  HUSK_VDSO_AT: 0x10_000c_0000n,
  HUSK_STACKS_AT: 0x10_0004_0000n,
  /** A thread takes 300 bytes of it at most, and its page stays with the clone: four share one. */
  HUSK_STACK_BYTES: 1024n,
  HUSK_THREADS_MAX: 256n,
  HUSK_PROGRAM_AT: 0x10_001f_0000n,
  HUSK_PROGRAM_BYTES_MAX: 0x2000_0000n,
  /** Larger programs are mapped. */
  HUSK_PROGRAM_ROOM: 0x1_0000n,
  /** As much of it is faulted in when a husk is made: programs of small functions take 23 to 28 KiB. */
  HUSK_PROGRAM_AHEAD: 0x7000n,
  HUSK_RESUME_ROOM: 0x4000n,
  /** Threads that a pooled husk makes ahead. */
  HUSK_SPARES_MAX: 16,
  /** Programs that run while the one before is still in use: its threads return through frames that lie in it. */
  HUSK_RESUME_AT: 0x10_3000_0000n,
  /** Where the extractor works in a process that it deflates (native/replace.c). */
  HUSK_WORKSHOP_AT: 0x10_3800_0000n,
  /** The husk's channel to the keeper (SOCK_SEQPACKET) when it is executed. */
  HUSK_CHANNEL_FD: 100,
  /** Event counters by which it asks init for the number of its next thread, and is told: HUSK_NUMBER_SET, and an error number on top. */
  HUSK_ASK_FD: 101,
  HUSK_TOLD_FD: 102,
  HUSK_NUMBER_SET: 1,
  HUSK_SLOTS: 256,
  HUSK_FDS_MAX: 64,
  HUSK_STAMPS: 16,
  HUSK_RUN_MAGIC: 0x4e555254,
  HUSK_REPORT_MAGIC: 0x54505254,
  PROGRAM_MAGIC: 0x50574854,
  HUSK_GIFT_MAGIC: 0x54464754,
  /** Above this much that lies unread in a unix socket, its buffer is made as large as can be while it is filled; its own size is among its options. */
  SOCKET_QUEUE_LARGE: 65_536,

  // Operations of a program.
  OP_SYSCALL: 1,
  OP_STAMP: 2,
  OP_INSTALL: 3,
  OP_POKE: 4,
  OP_IDENTITY: 5,
  OP_THREAD: 6,
  OP_RESUME: 7,
  OP_REPORT: 10,
  OP_TOUCH: 8,
  OP_LOAD: 11,
  OP_RELEASE: 12,
  OP_GIVE: 13,
  OP_SPARES: 14,
  OP_LIMIT: 15,

  /** A failed system call ends the program unless this is set. */
  OP_FLAG_MAY_FAIL: 1,
  /** `expect` must equal the result. */
  OP_FLAG_EXPECT: 2,
  NO_SLOT: 0xffff,

  // Messages, server to keeper.
  MSG_TEMPLATE: 1,
  MSG_CGROUPS: 2,
  MSG_FILE_OPEN: 3,
  MSG_FILE_BYTES: 4,
  MSG_FILE_CLOSE: 5,
  MSG_HUSK: 6,
  MSG_STAGE: 7,
  MSG_SEND: 8,
  MSG_LIMITS: 9,
  MSG_KILL: 10,
  MSG_HELPER: 11,
  MSG_UFFD_CLOSE: 12,
  MSG_PREFETCH: 13,
  MSG_FILE_TEMP: 20,
  MSG_HELPER_TERM: 21,
  MSG_PAGED_BY: 14,
  MSG_TRACE: 15,
  MSG_MEMORY: 16,
  // Messages, keeper to server.
  MSG_HELLO: 64,
  MSG_OK: 65,
  MSG_FAILED: 66,
  MSG_HUSK_READY: 67,
  MSG_STAGE_DONE: 68,
  MSG_LOG: 69,
  MSG_DATA: 70,
  MSG_EXIT: 71,
  MSG_HELPER_DONE: 72,
  MSG_PREFETCHED: 73,
  MSG_PAGED: 74,
  MSG_TRACED: 75,
  MSG_MEMORY_TOLD: 76,

  /** Descriptors that a helper gets, from 3 on; `flags` of MSG_HELPER says how many file ids precede its arguments. */
  HELPER_FDS_MAX: 4,

  /** What a stage hands to the husk, one entry for each descriptor. */
  PASS_FILE: 0,
  PASS_TREE: 1,
  PASS_CONTROL: 2,
  PASS_LOG: 3,

  /** In `flags` of a stage: nobody waits for its report, which is told with the first bytes that the function sends, or with its end. */
  STAGE_QUIET: 1,
  /** In `flags` of a PREFETCH: somebody waits for the answer. */
  PREFETCH_AWAITED: 1,

  FILE_READ: 0,
  FILE_PATH: 1,
  FILE_MAPPED: 2,
  /** In `flags` of an EXIT. */
  EXIT_UNREAD: 1,

  /** What a husk gives (OP_GIVE): a userfaultfd to be kept, one to be served by the pager, what the husk waits at until its pages are there. */
  GIFT_KEPT: 0,
  GIFT_PAGED: 1,
  GIFT_GATE: 2,

  PAGE_PLAN_MAGIC: 0x4e4c5047,
  /** How the pager installs a set: not at all; from the page space by several threads; by one read of its file, through the page cache or past it. */
  PAGE_LAZY: 0,
  PAGE_PARALLEL: 1,
  PAGE_FILE: 2,
  PAGE_DIRECT: 3,
  /** In page_range.from: the page lies in the base's page space. */
  PAGE_FROM_BASE: 0x8000_0000_0000_0000n,

  /** A longer list is sent as several messages. */
  PREFETCH_RANGES_MAX: 2048,

  MESSAGE_BYTES_MAX: 0x1000_0000,
} as const;

type Field = readonly [name: string, type: "u16" | "u32" | "i32" | "u64" | "i64", count?: number];

/** Structs visible to C as `struct <name>`. */
const ABI_STRUCTS = {
  /** Heads every message between server and keeper; `bytes` follow. `id` names a husk/instance, a file, a template or a request. */
  message: [
    ["bytes", "u32"],
    ["type", "u16"],
    ["flags", "u16"],
    ["id", "u32"],
    ["reserved", "u32"],
  ],
  /** MSG_HUSK: make an empty sandboxed process. */
  husk_make: [
    ["template_id", "u32"],
    ["pid", "u32"],
    ["tmp_mb", "u32"],
    ["uid", "u32"],
  ],
  /** MSG_HUSK_READY. `pid` is the function's pid on the host, `init_pid` its init's. */
  husk_ready: [
    ["pid", "u32"],
    ["init_pid", "u32"],
    ["us", "u32"],
    ["reserved", "u32"],
  ],
  /** MSG_STAGE: run one program in a husk. `fd_count` stage_fd entries follow; program_file is a file id. */
  stage: [
    ["program_file", "u32"],
    ["fd_count", "u32"],
    ["fd_base", "u32"],
    ["flags", "u32"],
  ],
  stage_fd: [
    ["kind", "u32"],
    ["file", "u32"],
  ],
  /** What the husk receives, with the program first among the descriptors. */
  husk_run: [
    ["magic", "u32"],
    ["fd_base", "u32"],
    ["program_bytes", "u64"],
    ["fd_count", "u32"],
    ["reserved", "u32"],
  ],
  /** What the husk answers after each program, or just before it becomes the function. Stamps are CLOCK_MONOTONIC nanoseconds, 0 = unused. */
  husk_report: [
    ["magic", "u32"],
    ["status", "i32"],
    ["failed_op", "u32"],
    ["reserved", "u32"],
    ["stamps", "u64", 16],
  ],
  /** What OP_GIVE sends with one descriptor: the keeper holds it until MSG_UFFD_CLOSE, or the end of the instance. */
  husk_gift: [
    ["magic", "u32"],
    ["kind", "u32"],
  ],
  /** MSG_EXIT. */
  exit: [
    ["wait_status", "u32"],
    ["oom_kills", "u32"],
    ["max_rss_kb", "u32"],
    /** How many SENDs had come for it: what was sent later met nobody. */
    ["sends", "u32"],
    ["peak_bytes", "u64"],
  ],
  /** MSG_PREFETCH, of nobody (id 0), or of an instance: nothing, where all seems to be in the page cache; else nothing is sent to that instance until the disk was asked. At most PREFETCH_RANGES_MAX of these; `file` is a file id. */
  prefetch_range: [
    ["file", "u32"],
    ["reserved", "u32"],
    ["offset", "u64"],
    ["bytes", "u64"],
  ],
  /** MSG_PREFETCHED. `pages` of the ranges were not in the page cache before; -1 where nobody can say. */
  prefetched: [
    ["us", "u32"],
    ["reserved", "u32"],
    ["pages", "i64"],
  ],
  /** MSG_PAGED_BY: file ids. The pager will fill the memory that this instance's husk gives. `set` 0: the plan reads none; `base` 0: nor has the image one. */
  paged_by: [
    ["plan", "u32"],
    ["pages", "u32"],
    ["set", "u32"],
    ["base", "u32"],
  ],
  /** A plan: this, then page_ranges: `segments` registered ones, `copies` to install, `zeros` to install as zero pages. */
  page_plan: [
    ["magic", "u32"],
    ["mode", "u32"],
    ["segments", "u32"],
    ["copies", "u32"],
    ["zeros", "u32"],
    ["reserved", "u32"],
    ["set_bytes", "u64"],
  ],
  /**
   * `from`: offset in the page space, with PAGE_FROM_BASE in that of the base. `at`: of a copy, its offset in the set; of a segment, 1 when it stands for a file, whose bytes come
   * back when the function gives a page back.
   */
  page_range: [
    ["address", "u64"],
    ["bytes", "u64"],
    ["from", "u64"],
    ["at", "u64"],
  ],
  /** MSG_PAGED: the set is installed and the husk goes on. `direct` 0: it came through the page cache. */
  paged_report: [
    ["read_us", "u32"],
    ["install_us", "u32"],
    ["pages", "u32"],
    ["regions", "u32"],
    ["direct", "u32"],
    ["reserved", "u32"],
  ],
  program_header: [
    ["magic", "u32"],
    ["version", "u32"],
    ["op_count", "u32"],
    ["ops_at", "u32"],
    ["total_bytes", "u64"],
    /** Where the husk maps it: HUSK_PROGRAM_AT or HUSK_RESUME_AT. */
    ["base", "u64"],
    /** What threads still read behind the resume, from the base; all else is dropped there. */
    ["kept_from", "u32"],
    ["kept_end", "u32"],
  ],
  program_op: [
    ["kind", "u16"],
    ["slot_mask", "u16"],
    ["result_slot", "u16"],
    ["flags", "u16"],
    ["nr", "u32"],
    ["expect", "u32"],
    ["args", "u64", 6],
  ],
  /** Argument of OP_THREAD and OP_RESUME; also fills in what only the thread itself can set. */
  thread_state: [
    ["frame", "u64"],
    ["fs_base", "u64"],
    ["gs_base", "u64"],
    /** The word that the kernel clears when the thread ends. */
    ["tid_address", "u64"],
    /** The word that shall hold the thread's number: for glibc before 2.43 the same. 0: none. */
    ["tid_word", "u64"],
    /** The number that the thread has to get. 0: whatever it is. */
    ["number", "u64"],
    ["robust_list", "u64"],
    ["robust_bytes", "u64"],
    ["rseq", "u64"],
    ["rseq_bytes", "u32"],
    ["rseq_signature", "u32"],
    ["name", "u64", 2],
  ],
  /** Argument of OP_IDENTITY: the file behind a descriptor must still be the one the image was made with. */
  file_identity: [
    ["inode", "u64"],
    ["size", "u64"],
    ["mtime_s", "i64"],
    ["mtime_ns", "i64"],
    ["ctime_s", "i64"],
    ["ctime_ns", "i64"],
  ],
} as const satisfies Record<string, readonly Field[]>;

const FIELD_BYTES = { u16: 2, u32: 4, i32: 4, u64: 8, i64: 8 } as const;

/** Name of a struct in {@link ABI_STRUCTS}. */
export type StructName = keyof typeof ABI_STRUCTS;

interface FieldLayout {
  readonly offset: number;
  readonly type: keyof typeof FIELD_BYTES;
  readonly count: number;
}

interface StructLayout {
  readonly bytes: number;
  readonly fields: ReadonlyMap<string, FieldLayout>;
}

function computeLayout(name: string, fields: readonly Field[]): StructLayout {
  let offset = 0;
  let alignment = 1;
  const layout = new Map<string, FieldLayout>();
  for (const [field, type, count] of fields) {
    const bytes = FIELD_BYTES[type];
    if (offset % bytes !== 0) throw new Error(`bug: struct ${name} needs padding before ${field}`);
    layout.set(field, { offset, type, count: count ?? 1 });
    offset += bytes * (count ?? 1);
    alignment = Math.max(alignment, bytes);
  }
  if (offset % alignment !== 0) throw new Error(`bug: struct ${name} needs padding at its end`);
  return { bytes: offset, fields: layout };
}

const LAYOUTS = new Map<string, StructLayout>(
  Object.entries(ABI_STRUCTS).map(([name, fields]) => [name, computeLayout(name, fields)]),
);

function structLayout(name: StructName): StructLayout {
  const layout = LAYOUTS.get(name);
  if (layout === undefined) throw new Error(`bug: no struct ${name}`);
  return layout;
}

/** Size in bytes of a struct. */
export function structBytes(name: StructName): number {
  return structLayout(name).bytes;
}

function fieldLayout(name: StructName, field: string): FieldLayout {
  const place = structLayout(name).fields.get(field);
  if (place === undefined) throw new Error(`bug: struct ${name} has no field ${field}`);
  return place;
}

/** Offset of a field in its struct. */
export function fieldOffset(name: StructName, field: string): number {
  return fieldLayout(name, field).offset;
}

type StructValues = Readonly<Record<string, number | bigint | readonly (number | bigint)[]>>;

/** Writes `values` at `offset`; fields that are not named become 0. Returns the offset behind the struct. */
export function writeStruct(target: Buffer, offset: number, name: StructName, values: StructValues): number {
  const end = offset + structBytes(name);
  target.fill(0, offset, end);
  for (const [field, value] of Object.entries(values)) {
    const place = fieldLayout(name, field);
    const list = Array.isArray(value) ? (value as readonly (number | bigint)[]) : [value as number | bigint];
    if (list.length > place.count) throw new Error(`bug: ${name}.${field} holds ${place.count} values`);
    for (const [index, item] of list.entries()) writeInteger(target, offset + place.offset, place.type, index, item);
  }
  return end;
}

function writeInteger(target: Buffer, at: number, type: FieldLayout["type"], index: number, value: number | bigint): void {
  const position = at + index * FIELD_BYTES[type];
  if (type === "u16") target.writeUInt16LE(Number(value), position);
  else if (type === "u32") target.writeUInt32LE(Number(value), position);
  else if (type === "i32") target.writeInt32LE(Number(value), position);
  else if (type === "u64") target.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)), position);
  else target.writeBigInt64LE(BigInt(value), position);
}

/** Reads one field (element `index` of an array field). 64-bit fields come as bigint through {@link readStructBig}. */
export function readStruct(source: Buffer, offset: number, name: StructName, field: string, index = 0): number {
  return Number(readStructBig(source, offset, name, field, index));
}

/** As {@link readStruct}, without loss for 64-bit fields. */
export function readStructBig(source: Buffer, offset: number, name: StructName, field: string, index = 0): bigint {
  const place = fieldLayout(name, field);
  const position = offset + place.offset + index * FIELD_BYTES[place.type];
  if (place.type === "u16") return BigInt(source.readUInt16LE(position));
  if (place.type === "u32") return BigInt(source.readUInt32LE(position));
  if (place.type === "i32") return BigInt(source.readInt32LE(position));
  if (place.type === "u64") return source.readBigUInt64LE(position);
  return source.readBigInt64LE(position);
}

const C_TYPES = { u16: "uint16_t", u32: "uint32_t", i32: "int32_t", u64: "uint64_t", i64: "int64_t" } as const;

/** The text of `abi.h`. */
export function abiHeader(): string {
  const lines = [
    "/* Generated from src/linux/abi.ts. Do not edit. */",
    "#pragma once",
    "#include <stddef.h>",
    "#include <stdint.h>",
    "",
  ];
  for (const [name, value] of Object.entries(ABI_CONSTANTS)) {
    lines.push(`#define ${name} ${typeof value === "bigint" ? `0x${value.toString(16)}ULL` : `${value}`}`);
  }
  for (const [name, fields] of Object.entries(ABI_STRUCTS) as [StructName, readonly Field[]][]) {
    const layout = structLayout(name);
    lines.push("", `struct ${name} {`);
    for (const [field, type, count] of fields) {
      lines.push(`\t${C_TYPES[type]} ${field}${count === undefined ? "" : `[${count}]`};`);
    }
    lines.push("};", `_Static_assert(sizeof(struct ${name}) == ${layout.bytes}, "${name}");`);
    for (const [field, place] of layout.fields) {
      lines.push(`_Static_assert(offsetof(struct ${name}, ${field}) == ${place.offset}, "${name}.${field}");`);
    }
  }
  return `${lines.join("\n")}\n`;
}
