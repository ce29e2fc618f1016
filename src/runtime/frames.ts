/**
 * The server's side of the frames that cross a function's control descriptor (docs/design/runtime.md):
 *
 *     u32 magic | u32 headerBytes | u32 bodyBytes | header: JSON | body: raw bytes       little-endian
 *
 * What a function writes is not to be trusted: its code shares the descriptor with the runtime. The parser refuses whatever
 * is not a frame at the first byte that shows it, rebuilds every header from the members it knows, and holds at most one
 * unfinished frame, whose size is bounded before any memory is taken for it.
 */
import { ThawError } from "../base/errors.js";

/** "THAW" as it lies in memory. */
export const FRAME_MAGIC = 0x57414854;
const FRAME_PREFIX_BYTES = 12;
export const FRAME_HEADER_BYTES_MAX = 64 * 1024;
/** Lambda's limit on a payload, each way: 6 MiB and 100 bytes. */
export const PAYLOAD_BYTES_MAX = 6_291_556;
/** An error object may quote a payload that was nearly too large. */
export const FRAME_BODY_BYTES_MAX = PAYLOAD_BYTES_MAX + 64 * 1024;

/** Present on the first request after a thaw: what the runtime renews itself from. */
export interface ThawHeader {
  /** A UUID, new for each thaw. */
  readonly id: string;
  /** 32 random bytes as 64 hexadecimal digits. */
  readonly entropy: string;
  /** The process id inside the sandbox. */
  readonly pid: number;
  readonly generation: number;
}

/** A request. The body is the event, JSON. */
export interface InvokeHeader {
  readonly type: "invoke";
  readonly requestId: string;
  /** Epoch milliseconds. */
  readonly deadlineMs: number;
  readonly functionName: string;
  readonly functionVersion: string;
  readonly memoryMb: number;
  readonly invokedArn: string;
  /** JSON text. */
  readonly clientContext?: string;
  readonly traceId?: string;
  readonly thaw?: ThawHeader;
  /** Present on the first request after before-snapshot hooks ran in this same process: its after-restore hooks run, nothing is renewed. */
  readonly resumed?: true;
  /** Neither hooks nor the handler run, the event is the answer, and nothing is done behind it: the process ends. */
  readonly rehearsal?: true;
}

/** Asks for before-snapshot hooks and garbage collection. */
export interface PrepareHeader {
  readonly type: "prepare";
  /** False: hooks alone. A collection touches every object, and would bring all of a woken instance's memory back. Default true. */
  readonly collect?: boolean;
  /** Measure how hot the code is, too. Node does that in 5 to 30 ms, and not with `collect: false`; Python in 0.2. */
  readonly heat?: true;
  /** An image will be taken: tell where in memory what other threads draw from lies, if there are such threads. */
  readonly seeds?: true;
}

/** To a clone of a base image: load this function. The body is `{"env": {…}}`, JSON: the whole environment, `_HANDLER` in it. */
export interface LoadHeader {
  readonly type: "load";
  readonly thaw: ThawHeader;
}

export type ServerHeader = InvokeHeader | PrepareHeader | LoadHeader;

/** The outcome of one request. */
export interface AnswerHeader {
  readonly type: "result" | "error";
  readonly requestId: string;
  readonly handlerMs: number;
  readonly maxMemoryMb: number;
  /** Set by a streaming handler: the body is then raw bytes of this type, not JSON. */
  readonly contentType?: string;
  /** The process ends after this answer. */
  readonly last?: true;
  /** Set when the runtime itself refused the reply. */
  readonly platformError?: "RESPONSE_TOO_LARGE";
}

/** The runtime is ready to be frozen or hibernated. */
export interface PreparedHeader {
  readonly type: "prepared";
  /** Before-hooks and garbage collection together. */
  readonly hygieneMs: number;
  readonly heat?: HeatMember;
  /** Address and bytes of memory that must be random bytes in each clone before any of its threads runs. */
  readonly seeds?: readonly Seed[];
  /** Names (no paths) of libraries that have an allocator in them by which nothing was ever allocated. */
  readonly unusedAllocators?: readonly string[];
}

export type Seed = readonly [address: number, bytes: number];

/** Of a `prepared` frame, and of one of them. */
const SEEDS_MAX = 64;
const SEED_BYTES_MAX = 4096;
const UNUSED_MAX = 16;
const FILE_NAME = /^[^/\0]{1,255}$/;

/** How far the runtime has optimised the function's own code, as it says itself; see `CodeHeat` of the engine. */
export interface HeatMember {
  readonly functions: number;
  readonly tiers: Readonly<Record<string, number>>;
  readonly codeBytes?: number;
}

/** Names of tiers: few and short, so that whatever a function claims fits on a screen. */
const TIERS_MAX = 8;
const TIER_NAME = /^[a-z]{1,16}$/;

export type FunctionHeader =
  | { readonly type: "ready" }
  | { readonly type: "initError" }
  | { readonly type: "prepareError" }
  | AnswerHeader
  | PreparedHeader;

/** One frame from a function. */
export interface FunctionFrame {
  readonly header: FunctionHeader;
  readonly body: Buffer;
}

/** The bytes of one frame to the function. A large body is a buffer of its own, not copied: write them in order. */
export function encodeFrame(header: ServerHeader, body: Buffer | string = ""): Buffer[] {
  const head = Buffer.from(JSON.stringify(header), "utf8");
  if (head.length > FRAME_HEADER_BYTES_MAX) {
    throw new ThawError("INVALID_ARGUMENT", {
      what: "The request's context is too large",
      why: `it takes ${head.length} bytes and ${FRAME_HEADER_BYTES_MAX} are allowed`,
      fix: "Send a smaller client context",
    });
  }
  const bytes = typeof body === "string" ? Buffer.from(body, "utf8") : body;
  const prefix = Buffer.allocUnsafe(FRAME_PREFIX_BYTES);
  prefix.writeUInt32LE(FRAME_MAGIC, 0);
  prefix.writeUInt32LE(head.length, 4);
  prefix.writeUInt32LE(bytes.length, 8);
  if (bytes.length === 0) return [Buffer.concat([prefix, head])];
  if (bytes.length <= FRAME_HEADER_BYTES_MAX) return [Buffer.concat([prefix, head, bytes])];
  return [Buffer.concat([prefix, head]), bytes];
}

/** What `bytes` look like, for a person: text when it is text, hexadecimal when not. */
function show(bytes: Buffer): string {
  const head = bytes.subarray(0, 32);
  const text = head.toString("latin1");
  const more = bytes.length > head.length ? " …" : "";
  return /^[\x20-\x7e\t\r\n]*$/.test(text) ? `${JSON.stringify(text)}${more}` : `the bytes ${head.toString("hex")}${more}`;
}

function violation(why: string): ThawError {
  return new ThawError("PROTOCOL_VIOLATION", {
    what: "The function wrote something to descriptor 3 that is not a reply",
    why,
    fix: "Descriptor 3 belongs to the runtime: the function's code, its libraries and its child processes must leave it alone",
  });
}

function textMember(header: Record<string, unknown>, name: string): string {
  const value = header[name];
  if (typeof value !== "string" || value.length > 256)
    throw violation(`the member "${name}" of a ${String(header.type)} frame is not a short text`);
  return value;
}

function numberMember(header: Record<string, unknown>, name: string): number {
  const value = header[name];
  if (typeof value !== "number" || !Number.isFinite(value) || value < 0) {
    throw violation(`the member "${name}" of a ${String(header.type)} frame is not a positive number`);
  }
  return value;
}

function countMember(value: unknown, name: string): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
  throw violation(`"${name}" in the heat of a prepared frame is not a count`);
}

function heatMember(value: unknown): HeatMember {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw violation("the heat of a prepared frame is not an object");
  const { functions, tiers, codeBytes } = value as Record<string, unknown>;
  if (typeof tiers !== "object" || tiers === null || Array.isArray(tiers)) {
    throw violation("the heat of a prepared frame has no tiers");
  }
  const entries = Object.entries(tiers);
  if (entries.length > TIERS_MAX || !entries.every(([name]) => TIER_NAME.test(name))) {
    throw violation(`the heat of a prepared frame has more than ${TIERS_MAX} tiers, or names them oddly`);
  }
  const counts = entries.map(([name, count]) => [name, countMember(count, name)] as const);
  const total = countMember(functions, "functions");
  if (counts.reduce((sum, [, count]) => sum + count, 0) > total) {
    throw violation("the heat of a prepared frame has more functions in tiers than functions");
  }
  return {
    functions: total,
    tiers: Object.fromEntries(counts),
    ...(codeBytes === undefined ? {} : { codeBytes: countMember(codeBytes, "codeBytes") }),
  };
}

function seedsMember(value: unknown): Seed[] {
  if (!Array.isArray(value) || value.length > SEEDS_MAX)
    throw violation(`the seeds of a prepared frame are not a list of at most ${SEEDS_MAX}`);
  return value.map((seed: unknown) => {
    const [address, bytes] = Array.isArray(seed) && seed.length === 2 ? (seed as unknown[]) : [];
    if (
      !Number.isSafeInteger(address) ||
      Number(address) < 0 ||
      !Number.isSafeInteger(bytes) ||
      Number(bytes) < 1 ||
      Number(bytes) > SEED_BYTES_MAX
    )
      throw violation("a seed of a prepared frame is not an address and a number of bytes");
    return [Number(address), Number(bytes)] as const;
  });
}

function unusedAllocatorsMember(value: unknown): string[] {
  const isName = (name: unknown): name is string => typeof name === "string" && FILE_NAME.test(name);
  if (!Array.isArray(value) || value.length > UNUSED_MAX || !value.every(isName))
    throw violation(`the unused allocators of a prepared frame are not a list of at most ${UNUSED_MAX} names of files`);
  return value;
}

function parseHeader(frame: Buffer, from: number, to: number): FunctionHeader {
  const shown = (): string => show(frame.subarray(from, to));
  let value: unknown;
  try {
    value = JSON.parse(frame.toString("utf8", from, to));
  } catch {
    throw violation(`the header of a frame is not JSON but ${shown()}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw violation(`the header of a frame is not an object but ${shown()}`);
  const header = value as Record<string, unknown>;
  switch (header.type) {
    case "ready":
    case "initError":
    case "prepareError":
      return { type: header.type };
    case "prepared":
      return {
        type: "prepared",
        hygieneMs: numberMember(header, "hygieneMs"),
        ...(header.heat === undefined ? {} : { heat: heatMember(header.heat) }),
        ...(header.seeds === undefined ? {} : { seeds: seedsMember(header.seeds) }),
        ...(header.unusedAllocators === undefined ? {} : { unusedAllocators: unusedAllocatorsMember(header.unusedAllocators) }),
      };
    case "result":
    case "error":
      return {
        type: header.type,
        requestId: textMember(header, "requestId"),
        handlerMs: numberMember(header, "handlerMs"),
        maxMemoryMb: numberMember(header, "maxMemoryMb"),
        ...(header.contentType === undefined ? {} : { contentType: textMember(header, "contentType") }),
        ...(header.last === true ? { last: true as const } : {}),
        ...(header.platformError === "RESPONSE_TOO_LARGE" ? { platformError: header.platformError } : {}),
      };
    default:
      throw violation(`it sent a frame of unknown type: ${shown()}`);
  }
}

const NOTHING = Buffer.alloc(0);
const MAGIC_BYTES = Buffer.from("THAW", "latin1");

/** Checks the first bytes of a frame, as many as are there. */
function checkMagic(bytes: Buffer): void {
  if (bytes.length >= 4 && bytes.readUInt32LE(0) === FRAME_MAGIC) return;
  const count = Math.min(bytes.length, 4);
  if (MAGIC_BYTES.compare(bytes, 0, count, 0, count) !== 0) throw violation(`${show(bytes)} came where a frame must begin`);
}

/** Sizes of the frame whose complete prefix begins `bytes`. */
function checkPrefix(bytes: Buffer): { headerBytes: number; totalBytes: number } {
  const headerBytes = bytes.readUInt32LE(4);
  const bodyBytes = bytes.readUInt32LE(8);
  if (headerBytes === 0 || headerBytes > FRAME_HEADER_BYTES_MAX) {
    throw violation(`a frame announces a header of ${headerBytes} bytes; 1 to ${FRAME_HEADER_BYTES_MAX} are allowed`);
  }
  if (bodyBytes > FRAME_BODY_BYTES_MAX) {
    throw new ThawError("RESPONSE_TOO_LARGE", {
      what: "The function's reply is too large",
      why: `a frame announces ${bodyBytes} bytes and ${PAYLOAD_BYTES_MAX} are allowed`,
      fix: "Return less, or store the result and return where it is",
    });
  }
  return { headerBytes, totalBytes: FRAME_PREFIX_BYTES + headerBytes + bodyBytes };
}

/**
 * Turns chunks, cut anywhere, into frames. A frame that lies in one chunk is handed out as views of it; one that does not is
 * gathered in a buffer of its exact size. After an error the parser is of no more use and repeats the error.
 */
export class FrameParser {
  /** The unfinished frame: its prefix while that is incomplete, then the whole frame. Made when there is one: nearly all come whole. */
  #buffer: Buffer = NOTHING;
  #filled = 0;
  #headerBytes = 0;
  #failure: unknown;

  /** Frames that are complete with this chunk. PROTOCOL_VIOLATION or RESPONSE_TOO_LARGE for anything else. */
  push(chunk: Buffer): FunctionFrame[] {
    if (this.#failure !== undefined) throw this.#failure;
    try {
      return this.#parse(chunk);
    } catch (error) {
      this.#failure = error;
      throw error;
    }
  }

  /** Whether a frame has begun that is not complete. */
  get unfinished(): boolean {
    return this.#filled > 0;
  }

  /** To be called at the end of the stream. PROTOCOL_VIOLATION when a frame was cut short. */
  finish(): void {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#filled > 0) throw violation(`it ended in the middle of a frame, after ${this.#filled} bytes`);
  }

  #parse(chunk: Buffer): FunctionFrame[] {
    const frames: FunctionFrame[] = [];
    let at = 0;
    while (at < chunk.length) {
      if (this.#filled === 0 && chunk.length - at >= FRAME_PREFIX_BYTES) {
        // Nearly always one frame that fills its chunk. It is read while somebody waits for it: with as few steps as can be.
        const rest = at === 0 ? chunk : chunk.subarray(at);
        checkMagic(rest);
        const { headerBytes, totalBytes } = checkPrefix(rest);
        if (rest.length >= totalBytes) {
          frames.push(frameOf(rest, headerBytes, totalBytes));
          at += totalBytes;
          continue;
        }
        this.#gather(headerBytes, totalBytes);
      }
      if (this.#buffer === NOTHING) this.#buffer = Buffer.allocUnsafe(FRAME_PREFIX_BYTES);
      const copied = chunk.copy(this.#buffer, this.#filled, at);
      at += copied;
      this.#filled += copied;
      if (this.#headerBytes === 0) {
        checkMagic(this.#buffer.subarray(0, this.#filled));
        if (this.#filled < FRAME_PREFIX_BYTES) continue;
        const prefix = this.#buffer;
        const { headerBytes, totalBytes } = checkPrefix(prefix);
        this.#gather(headerBytes, totalBytes);
        prefix.copy(this.#buffer);
      } else if (this.#filled === this.#buffer.length) {
        frames.push(frameOf(this.#buffer, this.#headerBytes, this.#buffer.length));
        this.#buffer = NOTHING;
        this.#headerBytes = 0;
        this.#filled = 0;
      }
    }
    return frames;
  }

  #gather(headerBytes: number, totalBytes: number): void {
    this.#headerBytes = headerBytes;
    this.#buffer = Buffer.allocUnsafe(totalBytes);
  }
}

function frameOf(bytes: Buffer, headerBytes: number, totalBytes: number): FunctionFrame {
  const bodyAt = FRAME_PREFIX_BYTES + headerBytes;
  return { header: parseHeader(bytes, FRAME_PREFIX_BYTES, bodyAt), body: bytes.subarray(bodyAt, totalBytes) };
}
