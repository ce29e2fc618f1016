/**
 * Reads a zip package from the file that it was received to. A package comes from outside, so nothing that it says about itself is believed:
 * sizes are checked against what really inflates, names against what may be written, checksums against the bytes.
 *
 * Layout (APPNOTE.TXT 6.3.10): local headers with data, then the central directory (one 46-byte record and a name for each
 * entry), then the end record (22 bytes and a comment), which is searched from the end. Of zip64 there is what 65,535 entries and
 * more need: a second end record of 56 bytes, found by 20 bytes before the first. The central directory is what
 * counts; of a local header only its length is used, to find the data.
 *
 * The directory is in memory, of contents 256 KiB at once. What takes long is done in slices, between which others have the event loop.
 */
import { pipeline, Readable } from "node:stream";
import { crc32, createInflateRaw, inflateRawSync } from "node:zlib";
import { type ErrorParts, ThawError } from "../base/errors.js";
import { nextTurn } from "../base/turns.js";
import { formatBytes, KIB, MIB } from "../base/units.js";
import { type Measure, mostOf } from "./largest.js";
import { LIMITS } from "./types.js";
import type { ReceivedPackage } from "./uploads.js";

const END_SIGNATURE = 0x06054b50;
const END64_SIGNATURE = 0x06064b50;
const LOCATOR_SIGNATURE = 0x07064b50;
const CENTRAL_SIGNATURE = 0x02014b50;
const LOCAL_SIGNATURE = 0x04034b50;
const END_BYTES = 22;
const END64_BYTES = 56;
const LOCATOR_BYTES = 20;
const CENTRAL_BYTES = 46;
const LOCAL_BYTES = 30;
const COMMENT_BYTES_MAX = 0xffff;
/** Of a directory: what twice as many entries as there may be have, with names of 120 bytes. */
const DIRECTORY_BYTES_MAX = 32 * MIB;
/** Larger contents are read, inflated and written in pieces of that size. */
const PIECE_BYTES = 256 * KIB;
/** What is inflated at once, in less time than it takes to hand it to a thread, or little more. */
const SMALL_BYTES = 64 * KIB;
/** What a local header may have beyond the central one without a second read. */
const SLACK_BYTES = 64;
/** Entries between two turns of the event loop: a millisecond or two. */
const SLICE = 250;
const HOST_UNIX = 3;
const S_IFMT = 0o170000;
const S_IFLNK = 0o120000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;

/** What a package may have unpacked. */
export interface ZipLimits {
  readonly unpackedBytes: number;
  readonly packageEntries: number;
}

/** One entry of the central directory, its name checked. */
export interface ZipEntry {
  /** Relative, `/`-separated, without empty, `.` or `..` parts. */
  readonly path: string;
  readonly kind: "file" | "directory" | "link";
  readonly executable: boolean;
  readonly unpackedBytes: number;
  readonly packedBytes: number;
  /** Where its local header is, and how long that is without an extra field. */
  readonly localAt: number;
  readonly localBytes: number;
  readonly deflated: boolean;
  readonly crc: number;
}

/** A CODE_INVALID about the package. */
export function invalidPackage(why: string, parts: Partial<ErrorParts> = {}): ThawError {
  return new ThawError("CODE_INVALID", { what: "The code package cannot be unpacked", why, ...parts });
}

/** Lists a package. CODE_INVALID with the reason when it is damaged, too large, or holds names that may not be written. */
export async function readZip(zip: ReceivedPackage, limits: ZipLimits = LIMITS): Promise<ZipEntry[]> {
  const { at: directoryAt, bytes, count } = await findEnd(zip);
  if (count === 0) throw invalidPackage("it is empty", { fix: "Put the file with the handler into it" });
  // Of twice as many it can still be said what they are.
  if (count > 2 * limits.packageEntries) throw await tooMany(`it has ${count} entries`, limits);
  if (bytes > DIRECTORY_BYTES_MAX) {
    throw invalidPackage(
      `the list of its files has ${formatBytes(bytes)}, and the limit is ${formatBytes(DIRECTORY_BYTES_MAX)}`,
      {
        fix: "Use shorter names, or fewer files",
      },
    );
  }
  const directory = await zip.read(directoryAt, bytes);
  const entries: ZipEntry[] = [];
  const seen = new Map<string, ZipEntry>();
  let at = 0;
  let total = 0;
  for (let index = 0; index < count; index++) {
    if (index % SLICE === 0) await nextTurn();
    const [entry, next] = readEntry(directory, directoryAt, at, index);
    at = next;
    total += entry.unpackedBytes;
    if (entry.path === "") continue;
    const twin = seen.get(entry.path);
    if (twin?.kind === "directory" && entry.kind === "directory") continue;
    if (twin !== undefined) throw invalidPackage(`it holds "${entry.path}" twice`, { fix: "Pack it again, with each file once" });
    seen.set(entry.path, entry);
    entries.push(entry);
  }
  // A count or a length that was altered would else lose the last entries without a word.
  if (at !== bytes) throw invalidPackage("its directory has another length than its end says", { fix: "Pack it again" });
  if (total > limits.unpackedBytes) throw await tooLarge(entries, limits);
  if (count > limits.packageEntries) throw await tooMany(`it has ${count} entries`, limits, entries);
  await refuseFilesUnderFiles(entries, seen, limits);
  return entries;
}

/** The content of one entry, in pieces. CODE_INVALID, at the end at the latest, when it is not what the directory promised. */
export async function* readContent(zip: ReceivedPackage, entry: ZipEntry): AsyncGenerator<Uint8Array> {
  let bytes = 0;
  let crc = 0;
  for await (const piece of inflated(zip, entry)) {
    bytes += piece.byteLength;
    if (bytes > entry.unpackedBytes) throw largerThanItSays(entry);
    crc = crc32(piece, crc);
    yield piece;
  }
  if (bytes !== entry.unpackedBytes || crc !== entry.crc) throw damagedData(entry, ": its checksum is another");
}

async function* inflated(zip: ReceivedPackage, entry: ZipEntry): AsyncGenerator<Uint8Array> {
  const packed = packedPieces(zip, entry);
  if (!entry.deflated) {
    yield* packed;
    return;
  }
  try {
    if (Math.max(entry.packedBytes, entry.unpackedBytes) <= SMALL_BYTES) {
      const { value: whole = new Uint8Array() } = await packed.next();
      yield inflateRawSync(whole, { maxOutputLength: Math.max(1, entry.unpackedBytes) });
    } else {
      const inflater = createInflateRaw({ chunkSize: PIECE_BYTES });
      yield* pipeline(Readable.from(packed), inflater, () => undefined);
    }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ERR_BUFFER_TOO_LARGE") throw largerThanItSays(entry, error);
    if (code?.startsWith("Z_") === true) throw damagedData(entry, "", error);
    throw error;
  }
}

/** What lies behind the local header. The first piece is read with it. */
async function* packedPieces(zip: ReceivedPackage, entry: ZipEntry): AsyncGenerator<Uint8Array> {
  const { localAt, localBytes, packedBytes } = entry;
  const first = await zip.read(localAt, localBytes + SLACK_BYTES + Math.min(packedBytes, PIECE_BYTES));
  if (first.length < LOCAL_BYTES || first.readUInt32LE(0) !== LOCAL_SIGNATURE) throw damagedData(entry);
  const header = LOCAL_BYTES + first.readUInt16LE(26) + first.readUInt16LE(28);
  let at = localAt + header;
  let left = packedBytes;
  let piece = first.subarray(header, header + Math.min(left, PIECE_BYTES));
  // An extra field that is longer than what was read with it.
  if (piece.length < Math.min(left, PIECE_BYTES)) piece = await zip.read(at, Math.min(left, PIECE_BYTES));
  for (;;) {
    left -= piece.length;
    at += piece.length;
    if (piece.length === 0 && left > 0) throw damagedData(entry);
    yield piece;
    if (left === 0) return;
    piece = await zip.read(at, Math.min(left, PIECE_BYTES));
  }
}

function largerThanItSays({ path }: ZipEntry, cause?: unknown): ThawError {
  return invalidPackage(`"${path}" is larger than its header says`, { fix: "Pack it again", cause });
}

function damagedData({ path }: ZipEntry, how = "", cause?: unknown): ThawError {
  return invalidPackage(`the data of "${path}" is damaged${how}`, { fix: "Pack it again", cause });
}

interface End {
  readonly at: number;
  readonly bytes: number;
  readonly count: number;
}

/** Where the directory is, within the file. */
async function findEnd(zip: ReceivedPackage): Promise<End> {
  const tailAt = Math.max(0, zip.bytes - LOCATOR_BYTES - END_BYTES - COMMENT_BYTES_MAX);
  const tail = await zip.read(tailAt, zip.bytes - tailAt);
  for (let at = tail.length - END_BYTES; at >= 0; at--) {
    if (tail.readUInt32LE(at) !== END_SIGNATURE || at + END_BYTES + tail.readUInt16LE(at + 20) !== tail.length) continue;
    const end = tail.subarray(at);
    const found = { at: end.readUInt32LE(16), bytes: end.readUInt32LE(12), count: end.readUInt16LE(10) };
    const isBehind = (end: End): boolean => end.at + end.bytes <= tailAt + at;
    const whole = end.readUInt16LE(8) === found.count;
    const locator = locatorBefore(tail, at);
    const isLarge = locator !== undefined && (found.count === 0xffff || found.at === 0xffffffff);
    const whichever = isLarge ? await findEnd64(zip, locator) : whole && found;
    if (whichever && isBehind(whichever)) return whichever;
    throw invalidPackage("its directory has another length than its end says", { fix: "Pack it again" });
  }
  throw invalidPackage("it is not a zip file, or was cut short", { fix: "Send the bytes of a zip file" });
}

/** What leads to a second end record; 65,535 entries, exactly, may do without. */
function locatorBefore(tail: Buffer, end: number): Buffer | undefined {
  const locator = tail.subarray(Math.max(0, end - LOCATOR_BYTES), end);
  return locator.length === LOCATOR_BYTES && locator.readUInt32LE(0) === LOCATOR_SIGNATURE ? locator : undefined;
}

/** The second end record. */
async function findEnd64(zip: ReceivedPackage, locator: Buffer): Promise<End | undefined> {
  const end = await zip.read(Number(locator.readBigUInt64LE(8)), END64_BYTES);
  if (end.length < END64_BYTES || end.readUInt32LE(0) !== END64_SIGNATURE) return undefined;
  const [here, count, bytes, at] = [24, 32, 40, 48].map((offset) => Number(end.readBigUInt64LE(offset))) as [
    number,
    number,
    number,
    number,
  ];
  return here === count ? { at, bytes, count } : undefined;
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** The entry whose record is at `at` of the directory, and where the next one is. */
function readEntry(directory: Buffer, directoryAt: number, at: number, index: number): [ZipEntry, number] {
  const damaged = (): ThawError =>
    invalidPackage(`its directory is damaged at entry ${index + 1} (offset ${directoryAt + at})`, { fix: "Pack it again" });
  if (at + CENTRAL_BYTES > directory.length || directory.readUInt32LE(at) !== CENTRAL_SIGNATURE) throw damaged();
  const host = directory.readUInt8(at + 5);
  const flags = directory.readUInt16LE(at + 8);
  const method = directory.readUInt16LE(at + 10);
  const packedBytes = directory.readUInt32LE(at + 20);
  const unpackedBytes = directory.readUInt32LE(at + 24);
  const nameBytes = directory.readUInt16LE(at + 28);
  const extraBytes = directory.readUInt16LE(at + 30);
  const next = at + CENTRAL_BYTES + nameBytes + extraBytes + directory.readUInt16LE(at + 32);
  const mode = host === HOST_UNIX ? directory.readUInt32LE(at + 38) >>> 16 : 0;
  const localAt = directory.readUInt32LE(at + 42);
  if (next > directory.length) throw damaged();
  const name = decodeName(directory.subarray(at + CENTRAL_BYTES, at + CENTRAL_BYTES + nameBytes), index);
  if ((flags & 1) !== 0) throw invalidPackage(`"${name}" is encrypted`, { fix: "Pack it without a password" });
  if (method !== 0 && method !== 8)
    throw invalidPackage(`"${name}" is packed with method ${method}`, { fix: "Pack it with deflate" });
  if ([packedBytes, unpackedBytes, localAt].includes(0xffffffff))
    throw invalidPackage(`"${name}" is packed as a file of more than 4 GiB would be (zip64)`, {
      fix: "Pack it again, from files",
    });
  if (localAt + LOCAL_BYTES + packedBytes > directoryAt) throw damaged();
  const type = mode & S_IFMT;
  const isDirectory = name.endsWith("/") || type === S_IFDIR;
  if (!isDirectory && type !== 0 && type !== S_IFREG && type !== S_IFLNK) {
    throw invalidPackage(`"${name}" is neither a file, nor a directory, nor a symbolic link`, { fix: "Leave it out" });
  }
  if (isDirectory && unpackedBytes !== 0) throw invalidPackage(`"${name}" is a directory with content`, { fix: "Pack it again" });
  const entry: ZipEntry = {
    path: checkName(name),
    kind: isDirectory ? "directory" : type === S_IFLNK ? "link" : "file",
    executable: (mode & 0o111) !== 0,
    unpackedBytes,
    packedBytes,
    localAt,
    localBytes: LOCAL_BYTES + nameBytes + extraBytes,
    deflated: method === 8,
    crc: directory.readUInt32LE(at + 16),
  };
  return [entry, next];
}

function decodeName(bytes: Uint8Array, index: number): string {
  try {
    return utf8.decode(bytes);
  } catch (error) {
    throw invalidPackage(`the name of entry ${index + 1} is not UTF-8`, { fix: "Give the file a name in UTF-8", cause: error });
  }
}

/** Returns the normal form of `name`, or refuses it: absolute, climbing, with NUL or backslash, or too long for a file system. */
function checkName(name: string): string {
  const fix = "Pack it from inside the function's directory, with relative paths";
  if (name.startsWith("/") || /^[A-Za-z]:[\\/]/.test(name)) throw invalidPackage(`"${name}" is an absolute path`, { fix });
  if (name.includes("\\")) throw invalidPackage(`"${name}" contains a backslash`, { fix: "Use / between directories" });
  if (name.includes("\0")) throw invalidPackage("a name contains a NUL byte", { fix });
  const parts = name.split("/").filter((part) => part !== "" && part !== ".");
  if (parts.includes("..")) throw invalidPackage(`"${name}" leads out of the package`, { fix });
  if (parts.some((part) => Buffer.byteLength(part) > 255) || Buffer.byteLength(name) > 1024) {
    throw invalidPackage(`the name "${name.slice(0, 40)}…" is too long`, {
      fix: "Use names of at most 255 bytes, and paths of at most 1024",
    });
  }
  return parts.join("/");
}

/**
 * A file, or a link, cannot also be the directory of another entry; a link there would redirect the write. Directories that are entries of their own count as
 * such, and those that are only named in paths as well: one of 500 parts makes 499.
 */
async function refuseFilesUnderFiles(
  entries: readonly ZipEntry[],
  seen: ReadonlyMap<string, ZipEntry>,
  limits: ZipLimits,
): Promise<void> {
  const named = new Set<string>();
  for (const [index, { path }] of entries.entries()) {
    if (index % SLICE === 0) await nextTurn();
    for (let slash = path.indexOf("/"); slash !== -1; slash = path.indexOf("/", slash + 1)) {
      const parent = path.slice(0, slash);
      const kind = seen.get(parent)?.kind;
      if (kind === undefined) named.add(parent);
      if (entries.length + named.size > limits.packageEntries)
        throw await tooMany("it has more entries, with the directories in their paths", limits, entries);
      if (kind === undefined || kind === "directory") continue;
      throw invalidPackage(`"${path}" lies inside "${parent}", which is a ${kind === "link" ? "symbolic link" : "file"}`, {
        fix: "Pack it again, with each file once",
      });
    }
  }
}

async function tooMany(why: string, { packageEntries }: ZipLimits, entries: readonly ZipEntry[] = []): Promise<ThawError> {
  return invalidPackage(`${why}, and the limit is ${packageEntries}${await most(entries, "files")}`, {
    fix: "Leave out what the function does not need, or bundle the code into fewer files",
  });
}

async function tooLarge(entries: readonly ZipEntry[], { unpackedBytes }: ZipLimits): Promise<ThawError> {
  const why = `it unpacks to more than ${formatBytes(unpackedBytes)}, which is the limit${await most(entries, "bytes")}`;
  return invalidPackage(why, {
    fix: "Leave out what the function does not need",
  });
}

/** Behind the reason: what has most of it. */
async function most(entries: readonly ZipEntry[], measure: Measure): Promise<string> {
  const files = entries.filter(({ kind }) => kind !== "directory");
  return mostOf(
    files.map(({ path, unpackedBytes }) => ({ path, bytes: unpackedBytes })),
    measure,
  );
}
