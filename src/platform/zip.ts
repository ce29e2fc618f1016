/**
 * Reads a zip package from memory. A package comes from outside, so nothing that it says about itself is believed: sizes are
 * checked against what really inflates, names against what may be written, checksums against the bytes.
 *
 * Layout (APPNOTE.TXT 6.3.10): local headers with data, then the central directory (one 46-byte record and a name for each
 * entry), then the end record (22 bytes and a comment), which is searched from the end. The central directory is what
 * counts; of a local header only its length is used, to find the data.
 *
 * fflate could inflate, but shows neither permission bits nor symbolic links, nor checksums, and blocks the event loop or
 * starts threads; zlib's own pool inflates here, with a bound on the output.
 */
import { promisify } from "node:util";
import { crc32, inflateRaw } from "node:zlib";
import { type ErrorParts, ThawError } from "../base/errors.js";
import { formatBytes } from "../base/units.js";
import { LIMITS } from "./types.js";

const inflate = promisify<Uint8Array, { maxOutputLength: number }, Buffer>(inflateRaw);

const END_SIGNATURE = 0x06054b50;
const CENTRAL_SIGNATURE = 0x02014b50;
const LOCAL_SIGNATURE = 0x04034b50;
const END_BYTES = 22;
const COMMENT_BYTES_MAX = 0xffff;
const HOST_UNIX = 3;
const S_IFMT = 0o170000;
const S_IFLNK = 0o120000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;

/** One entry of the central directory, its name checked. */
export interface ZipEntry {
  /** Relative, `/`-separated, without empty, `.` or `..` parts. */
  readonly path: string;
  readonly kind: "file" | "directory" | "link";
  readonly executable: boolean;
  readonly unpackedBytes: number;
  readonly packed: Uint8Array;
  readonly deflated: boolean;
  readonly crc: number;
}

/** A CODE_INVALID about the package. */
export function invalidPackage(why: string, parts: Partial<ErrorParts> = {}): ThawError {
  return new ThawError("CODE_INVALID", { what: "The code package cannot be unpacked", why, ...parts });
}

/** Lists a package. CODE_INVALID with the reason when it is damaged, too large, or holds names that may not be written. */
export function readZip(zip: Uint8Array): ZipEntry[] {
  if (zip.byteLength > LIMITS.packedBytes) {
    throw invalidPackage(`it has ${formatBytes(zip.byteLength)}, and the limit is ${formatBytes(LIMITS.packedBytes)}`, {
      fix: "Leave out what the function does not need, such as development dependencies",
    });
  }
  const view = new DataView(zip.buffer, zip.byteOffset, zip.byteLength);
  const end = findEnd(view);
  const count = view.getUint16(end + 10, true);
  if (count === 0xffff || view.getUint32(end + 16, true) === 0xffffffff) {
    throw invalidPackage("it is in the zip64 format", { fix: "Pack it without zip64: with less than 65,535 files" });
  }
  if (count > LIMITS.packageEntries) throw tooMany(`it has ${count} entries`);
  if (count === 0) throw invalidPackage("it is empty", { fix: "Put the file with the handler into it" });
  const entries: ZipEntry[] = [];
  const seen = new Map<string, ZipEntry>();
  let at = view.getUint32(end + 16, true);
  let total = 0;
  for (let index = 0; index < count; index++) {
    const [entry, next] = readEntry(zip, view, at, index);
    at = next;
    total += entry.unpackedBytes;
    if (total > LIMITS.unpackedBytes) throw tooLarge();
    if (entry.path === "") continue;
    const twin = seen.get(entry.path);
    if (twin?.kind === "directory" && entry.kind === "directory") continue;
    if (twin !== undefined) throw invalidPackage(`it holds "${entry.path}" twice`, { fix: "Pack it again, with each file once" });
    seen.set(entry.path, entry);
    entries.push(entry);
  }
  // A count or a length that was altered would else lose the last entries without a word.
  if (at - view.getUint32(end + 16, true) !== view.getUint32(end + 12, true) || view.getUint16(end + 8, true) !== count) {
    throw invalidPackage("its directory has another length than its end says", { fix: "Pack it again" });
  }
  refuseFilesUnderFiles(entries, seen);
  return entries;
}

/** The content of one entry. CODE_INVALID when it is not what the directory promised. */
export async function readEntryBytes(entry: ZipEntry): Promise<Uint8Array> {
  let bytes: Uint8Array = entry.packed;
  if (entry.deflated) {
    try {
      bytes = await inflate(entry.packed, { maxOutputLength: Math.max(1, entry.unpackedBytes) });
    } catch (error) {
      const why =
        (error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE"
          ? `"${entry.path}" is larger than its header says`
          : `the data of "${entry.path}" is damaged`;
      throw invalidPackage(why, { fix: "Pack it again", cause: error });
    }
  }
  if (bytes.byteLength !== entry.unpackedBytes || crc32(bytes) !== entry.crc) {
    throw invalidPackage(`the data of "${entry.path}" is damaged: its checksum is another`, { fix: "Pack it again" });
  }
  return bytes;
}

function findEnd(view: DataView): number {
  const last = view.byteLength - END_BYTES;
  const first = Math.max(0, last - COMMENT_BYTES_MAX);
  for (let at = last; at >= first; at--) {
    if (view.getUint32(at, true) === END_SIGNATURE && at + END_BYTES + view.getUint16(at + 20, true) === view.byteLength)
      return at;
  }
  throw invalidPackage("it is not a zip file, or was cut short", { fix: "Send the bytes of a zip file" });
}

function readEntry(zip: Uint8Array, view: DataView, at: number, index: number): [ZipEntry, number] {
  const damaged = (): ThawError =>
    invalidPackage(`its directory is damaged at entry ${index + 1} (offset ${at})`, { fix: "Pack it again" });
  if (at + 46 > zip.byteLength || view.getUint32(at, true) !== CENTRAL_SIGNATURE) throw damaged();
  const host = view.getUint8(at + 5);
  const flags = view.getUint16(at + 8, true);
  const method = view.getUint16(at + 10, true);
  const packedBytes = view.getUint32(at + 20, true);
  const unpackedBytes = view.getUint32(at + 24, true);
  const nameBytes = view.getUint16(at + 28, true);
  const next = at + 46 + nameBytes + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  const mode = host === HOST_UNIX ? view.getUint32(at + 38, true) >>> 16 : 0;
  const local = view.getUint32(at + 42, true);
  if (next > zip.byteLength) throw damaged();
  const name = decodeName(zip.subarray(at + 46, at + 46 + nameBytes), index);
  if ((flags & 1) !== 0) throw invalidPackage(`"${name}" is encrypted`, { fix: "Pack it without a password" });
  if (method !== 0 && method !== 8)
    throw invalidPackage(`"${name}" is packed with method ${method}`, { fix: "Pack it with deflate" });
  if (unpackedBytes > LIMITS.unpackedBytes) throw tooLarge();
  if (local + 30 > zip.byteLength || view.getUint32(local, true) !== LOCAL_SIGNATURE) throw damaged();
  const data = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
  if (data + packedBytes > zip.byteLength) throw damaged();
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
    unpackedBytes: isDirectory ? 0 : unpackedBytes,
    packed: zip.subarray(data, data + packedBytes),
    deflated: method === 8,
    crc: view.getUint32(at + 16, true),
  };
  return [entry, next];
}

function decodeName(bytes: Uint8Array, index: number): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
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
function refuseFilesUnderFiles(entries: readonly ZipEntry[], seen: ReadonlyMap<string, ZipEntry>): void {
  const named = new Set<string>();
  for (const { path } of entries) {
    for (let slash = path.indexOf("/"); slash !== -1; slash = path.indexOf("/", slash + 1)) {
      const parent = path.slice(0, slash);
      const kind = seen.get(parent)?.kind;
      if (kind === undefined) named.add(parent);
      if (entries.length + named.size > LIMITS.packageEntries)
        throw tooMany("it has more entries, with the directories in their paths");
      if (kind === undefined || kind === "directory") continue;
      throw invalidPackage(`"${path}" lies inside "${parent}", which is a ${kind === "link" ? "symbolic link" : "file"}`, {
        fix: "Pack it again, with each file once",
      });
    }
  }
}

function tooMany(why: string): ThawError {
  return invalidPackage(`${why}, and the limit is ${LIMITS.packageEntries}`, { fix: "Bundle the code into fewer files" });
}

function tooLarge(): ThawError {
  return invalidPackage(`it unpacks to more than ${formatBytes(LIMITS.unpackedBytes)}, which is the limit`, {
    fix: "Leave out what the function does not need",
  });
}
