/**
 * What the extractor reports of a stopped process (native/extractor.c writes it, this schema checks it). 64-bit values are
 * hexadecimal strings in JSON and bigint here.
 */
import { z } from "../base/schema.js";
import { inTurns } from "../base/turns.js";
import { PAGE_BYTES } from "../base/units.js";
import type { PageRun } from "./page-runs.js";

const hex = z
  .string()
  .regex(/^0x[0-9a-f]{1,16}$/)
  .transform((text) => BigInt(text));
const bytes = z
  .string()
  .regex(/^([0-9a-f]{2})*$/)
  .transform((text) => Buffer.from(text, "hex"));
const count = z.int().nonnegative();

const identity = z.object({
  inode: hex,
  size: hex,
  mtimeS: z.int(),
  mtimeNs: count,
  ctimeS: z.int(),
  ctimeNs: count,
});

const region = z.object({
  /**
   * `base`: mapped from the page space of the base image, where `slot` and `runs` then lie (docs/design/base-images.md). `common`: shared with children that it
   * forks, and known to nobody else. `backed`: shared memory of a file in /tmp, or of the file of descriptor `fd`; its bytes are that file's.
   */
  kind: z.enum(["anon", "heap", "stack", "file", "shared", "overlay", "vdso", "common", "base", "backed"]),
  start: hex,
  end: hex,
  prot: z.int().min(0).max(7),
  wipe: z.literal(1).optional(),
  offset: hex.optional(),
  path: z.string().optional(),
  fd: count.optional(),
  /** It may be made writable, whatever `prot` says. */
  writes: z.literal(1).optional(),
  identity: identity.optional(),
  slot: hex.optional(),
  /** Pages that hold bytes: index within the region, count, index, count, … */
  runs: z.array(count).optional(),
});

const thread = z.object({
  /** In the sandbox, where clones give it again: locks note it as their owner's. The main thread's is the process's, of which each clone has its own. */
  number: count,
  name: z.string(),
  /** It waits, without a time limit, in a futex or epoll wait that ends only when another thread wants it to. */
  sleeps: z.boolean(),
  regs: bytes.refine((value) => value.length === 216, "27 registers"),
  xstate: bytes,
  sigmask: hex,
  altstack: z.tuple([hex, hex, hex]),
  robustList: hex,
  robustBytes: hex,
  rseq: hex,
  rseqBytes: count,
  rseqSignature: count,
  tidAddress: hex,
  tidWord: hex,
  /** As `struct sched_attr` and as a set of processors, where they are not as the sandbox began. */
  scheduled: bytes.optional(),
  processors: bytes.optional(),
});

/** Of a directory it may be any 64 bits, and locks may lie anywhere; images of former versions have a number. */
const position = z.union([hex, count.transform((value) => BigInt(value))]);
/** As `struct f_owner_ex` has it, and the signal; number 0: the process or its main thread. */
const owner = z.object({ type: z.int().min(0).max(1), number: count, signal: count }).optional();
const common = { fd: count, flags: count, pos: position, owner };
/** A socket for datagrams: for reading (1), for writing (2), for both. */
const shut = z.int().min(1).max(3).optional();
/** Those that are not as on a new socket; absent in images of a former version. */
const socketOptions = z.array(z.object({ level: count, name: count, value: bytes })).optional();

const descriptor = z.discriminatedUnion("kind", [
  z.object({ ...common, kind: z.literal("control") }),
  z.object({ ...common, kind: z.literal("same"), as: count }),
  z.object({
    ...common,
    kind: z.literal("pipe"),
    inode: count,
    end: z.enum(["read", "write"]),
    capacity: z.int(),
    bytes: bytes.optional(),
    broken: z.literal(1).optional(),
  }),
  z.object({ ...common, kind: z.literal("eventfd"), count: hex, semaphore: count }),
  z.object({
    ...common,
    kind: z.literal("epoll"),
    entries: z.array(z.object({ fd: count, file: count, events: count, data: hex })),
  }),
  z.object({
    ...common,
    kind: z.literal("timerfd"),
    clock: count,
    ticks: count,
    value: z.tuple([count, count]),
    interval: z.tuple([count, count]),
  }),
  z.object({ ...common, kind: z.literal("signalfd"), mask: hex }),
  /** One that watches nothing; others are refused. */
  z.object({ ...common, kind: z.literal("inotify") }),
  z.object({ ...common, kind: z.literal("device"), path: z.string() }),
  z.object({
    ...common,
    kind: z.literal("file"),
    path: z.string(),
    mode: count,
    locks: z.array(z.object({ type: z.string(), write: count, start: position, bytes: position })).optional(),
    deleted: z.literal(1).optional(),
    /** A lower descriptor, of the same file. */
    of: count.optional(),
    memfd: count.optional(),
    /** Of a memfd that may be sealed: F_GET_SEALS. */
    seals: count.optional(),
    at: count.optional(),
    bytes: count.optional(),
    /** A database of SQLite in /tmp, or `empty` and about to become one. */
    database: z.object({ device: hex, inode: hex, empty: z.literal(1).optional() }).optional(),
  }),
  z.object({ ...common, kind: z.literal("directory"), path: z.string(), mode: count }),
  z.object({
    ...common,
    kind: z.literal("unix"),
    type: count,
    inode: count,
    peer: count,
    bytes,
    options: socketOptions,
    idle: z.literal(1).optional(),
    readShut: z.literal(1).optional(),
    shut,
  }),
  z.object({
    ...common,
    kind: z.literal("inet"),
    domain: count,
    type: count,
    state: z.enum(["connection", "idle", "datagram"]),
    local: bytes,
    remote: bytes.optional(),
    options: socketOptions,
    shut,
  }),
]);

const tmpCommon = {
  path: z.string().startsWith("/tmp/"),
  inode: count.default(0),
  mode: count,
  mtimeS: z.int(),
  mtimeNs: count,
  /** When it was read last. Absent in images of a former version, whose clones have the time of its last change there. */
  atimeS: z.int().optional(),
  atimeNs: count.optional(),
};
/** Extended attributes of programs (`user.…`); absent where there are none. */
const attributes = z.array(z.object({ name: bytes, value: bytes })).optional();
const tmpEntry = z.discriminatedUnion("type", [
  z.object({ ...tmpCommon, type: z.literal("directory"), attributes }),
  z.object({ ...tmpCommon, type: z.literal("link"), target: z.string() }),
  z.object({ ...tmpCommon, type: z.literal("file"), at: count, bytes: count, attributes }),
]);

export const factsSchema = z.object({
  frame: z.object({ extendedBytes: count, stateBytes: count, features: hex }),
  clock: z.object({ monotonicNs: hex, boottimeNs: hex, realtimeNs: hex }),
  umask: count,
  /** What membarrier(2) says that the process registered for: its commands for that, as bits. */
  membarrier: count.optional(),
  /** What prctl(2) sets, and to what, where that is not usual. */
  settings: z.array(z.tuple([count, count])).default([]),
  sigactions: z.array(z.object({ signal: z.int().min(1).max(64), handler: hex, flags: hex, restorer: hex, mask: hex })),
  itimers: z.array(z.tuple([count, count, count, count])).length(3),
  mm: z.object({
    startCode: hex,
    endCode: hex,
    startData: hex,
    endData: hex,
    startBrk: hex,
    brk: hex,
    startStack: hex,
    argStart: hex,
    argEnd: hex,
    envStart: hex,
    envEnd: hex,
  }),
  rlimits: z.array(z.tuple([hex, hex])).length(16),
  cwd: z.string(),
  threads: z.array(thread).min(1),
  descriptors: z.array(descriptor),
  tmp: z.array(tmpEntry),
  pageSpaceBytes: hex,
  digest: z.string(),
  regions: z.array(region),
  /** Start and end of what nobody may touch (MADV_GUARD_INSTALL, Linux 6.13): glibc 2.42 has one under the stack of each thread. */
  guards: z.array(z.tuple([hex, hex])).default([]),
  /** Path of a library whose allocator relies on zeros where memory was given back, which a private mapping of a file does not have. */
  trustsZeros: z.string().optional(),
  /** Address and bytes of what each clone fills with random bytes before any of its threads runs: generators' state, as the runtime told it. */
  seeds: z
    .array(z.tuple([hex, z.int().min(1).max(4096)]))
    .max(64)
    .default([]),
  /** Addresses where SQLite notes the device of a database in /tmp, each with a descriptor of it (databases.ts). */
  databases: z.array(z.object({ at: hex, fd: count })).default([]),
  notes: z.array(z.string()),
});

/** A frozen process, as the compiler sees it. */
export type Facts = z.output<typeof factsSchema>;
export type Region = Facts["regions"][number];
export type ThreadFacts = Facts["threads"][number];
export type Descriptor = Facts["descriptors"][number];
export type TmpEntry = Facts["tmp"][number];
export type FileIdentity = z.output<typeof identity>;

/** Checked in some milliseconds. */
const REGIONS_AT_ONCE = 1000;
const regionsSchema = z.array(region);

/**
 * The regions of facts that nobody has checked, checked in turns of the event loop: 32,000 take 0.2 s. Undefined where they are few, or one of them is not as it must
 * be: {@link factsSchema} then checks all at once, and says what is wrong.
 */
export async function regionsInTurns(told: unknown): Promise<Region[] | undefined> {
  const { regions } = Object(told) as { readonly regions?: unknown };
  if (!Array.isArray(regions) || regions.length <= REGIONS_AT_ONCE) return undefined;
  const checked: Region[] = [];
  await inTurns(regions, REGIONS_AT_ONCE, (piece) => {
    const { data = [] } = regionsSchema.safeParse(piece);
    for (const one of data) checked.push(one);
  });
  return checked.length === regions.length ? checked : undefined;
}

/** Checks what the extractor told. Throws as {@link factsSchema} does. */
export async function parseFacts(told: object): Promise<Facts> {
  const regions = await regionsInTurns(told);
  return regions === undefined ? factsSchema.parse(told) : { ...factsSchema.parse({ ...told, regions: [] }), regions };
}

/** Whether a region maps a file: of the interpreter, of a library, or of the function. */
export function isFile({ kind }: Region): boolean {
  return kind === "file" || kind === "shared";
}

/** Whether others see what is written to a region: children, whoever has its file. */
export function isShared({ kind }: Region): boolean {
  return kind === "shared" || kind === "common" || kind === "backed";
}

/** Pages that hold bytes in a region, be they stored in the image itself or in its base. */
export function storedPages({ runs = [] }: Region): number {
  let pages = 0;
  for (let index = 1; index < runs.length; index += 2) pages += runs[index] ?? 0;
  return pages;
}

/** Those pages as runs. */
export function storedRuns({ start, runs = [] }: Region): PageRun[] {
  const stored: PageRun[] = [];
  for (let index = 0; index + 1 < runs.length; index += 2)
    stored.push({ address: start + BigInt((runs[index] ?? 0) * PAGE_BYTES), pages: runs[index + 1] ?? 0 });
  return stored;
}
