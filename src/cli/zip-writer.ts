/**
 * Writes a zip of files as it reads them: however large they are, some blocks of them are in memory. Large ones are packed by zlib's threads while the next ones are
 * read; those of one file follow each other as one stream of deflate, because each but the last ends with a flush, at a byte.
 *
 * Layout as in platform/zip.ts. Sizes and checksum stand behind the data and in the directory, because they are not known before. Every entry has one
 * fixed time: the same files give the same bytes with the same Node.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { promisify } from "node:util";
import { constants, crc32, deflateRaw, deflateRawSync, type ZlibOptions } from "node:zlib";
import { KIB, MIB } from "../base/units.js";

const deflate = promisify<Uint8Array, ZlibOptions, Buffer>(deflateRaw);

/** A file to be packed. */
export interface FileToPack {
  /** Its path in the zip, `/`-separated. */
  readonly path: string;
  readonly from: string;
  readonly bytes: number;
  readonly isExecutable: boolean;
}

const BLOCK_BYTES = MIB;
/** Blocks that are packed while others are read: zlib's pool has four threads. */
const BLOCKS_AHEAD = 6;
/** What is packed at once: to hand 12,745 files of 35 MB in all to threads took three times as much processor time as packing them. */
const SMALL_BYTES = 64 * KIB;
/** Yielded at once, of many small files. */
const PIECE_BYTES = 256 * KIB;
/** The server is near, and the package is unpacked once. */
const LEVEL = 3;

const VERSION = 20;
const VERSION_64 = 45;
const MADE_ON_UNIX = 3 << 8;
/** Sizes behind the data, name in UTF-8. */
const FLAGS = 0x0808;
const DEFLATED = 8;
/** 1 January 1980, the oldest that a zip can hold. */
const DATE = (1 << 5) | 1;
/** From here on there are not enough bits for a count. */
const MANY = 0xffff;

interface Block {
  readonly file: FileToPack;
  readonly bytes: number;
  readonly crc: number;
  readonly isFirst: boolean;
  readonly isLast: boolean;
  readonly packed: Buffer | Promise<Buffer>;
}

/**
 * The zip, in pieces. `onRead` is told of what was packed, in bytes; what cannot be read is thrown by `fail`. From `many` files on it has
 * the end of zip64.
 */
export async function* zipFiles(
  files: Iterable<FileToPack>,
  onRead: (bytes: number) => void,
  fail: (file: FileToPack, error: unknown) => never,
  many = MANY,
): AsyncGenerator<Buffer> {
  const directory: Buffer[] = [];
  let pieces: Buffer[] = [];
  let pieceBytes = 0;
  let at = 0;
  let entry = { at: 0, crc: 0, packedBytes: 0, bytes: 0 };
  const put = (bytes: Buffer): void => {
    pieces.push(bytes);
    pieceBytes += bytes.length;
    at += bytes.length;
  };
  for await (const { file, bytes, crc, isFirst, isLast, packed } of packedAhead(readBlocks(files, fail))) {
    if (isFirst) {
      entry = { at, crc: 0, packedBytes: 0, bytes: 0 };
      put(localHeader(file.path));
    }
    put(packed);
    entry = { at: entry.at, crc, packedBytes: entry.packedBytes + packed.length, bytes: entry.bytes + bytes };
    if (isLast) {
      put(descriptor(entry));
      directory.push(centralHeader(file, entry));
    }
    onRead(bytes);
    if (pieceBytes < PIECE_BYTES) continue;
    yield Buffer.concat(pieces);
    pieces = [];
    pieceBytes = 0;
  }
  const directoryAt = at;
  for (const record of directory) put(record);
  put(end(directory.length, directoryAt, at - directoryAt, many));
  yield Buffer.concat(pieces);
}

/** Blocks in their order, each when it is packed; others behind it are being packed by then. */
async function* packedAhead(blocks: Iterable<Block>): AsyncGenerator<Omit<Block, "packed"> & { readonly packed: Buffer }> {
  const ahead: Block[] = [];
  for (const next of blocks) {
    // Who waits for an earlier one hears of its error first, and of this one's perhaps never.
    if (next.packed instanceof Promise) next.packed.catch(() => undefined);
    ahead.push(next);
    const block = ahead.length < BLOCKS_AHEAD ? undefined : ahead.shift();
    if (block !== undefined) yield { ...block, packed: await block.packed };
  }
  for (const block of ahead) yield { ...block, packed: await block.packed };
}

function* readBlocks(
  files: Iterable<FileToPack>,
  fail: (file: FileToPack, error: unknown) => never,
): Generator<Block, undefined> {
  for (const file of files) {
    let fd: number | undefined;
    try {
      fd = openSync(file.from, "r");
      for (let read = 0, crc = 0, isLast = false; !isLast; ) {
        // One byte more than it had: less tells its end. It may have grown meanwhile.
        const left = file.bytes + 1 - read;
        const buffer = Buffer.allocUnsafe(left > 0 ? Math.min(left, BLOCK_BYTES) : BLOCK_BYTES);
        const data = buffer.subarray(0, fill(fd, buffer));
        isLast = data.length < buffer.length;
        crc = crc32(data, crc);
        const options = { level: LEVEL, finishFlush: isLast ? constants.Z_FINISH : constants.Z_SYNC_FLUSH };
        const packed = data.length <= SMALL_BYTES ? deflateRawSync(data, options) : deflate(data, options);
        yield { file, bytes: data.length, crc, isFirst: read === 0, isLast, packed };
        read += data.length;
      }
    } catch (error) {
      fail(file, error);
    } finally {
      if (fd !== undefined) closeSync(fd);
    }
  }
}

function fill(fd: number, buffer: Buffer): number {
  let filled = 0;
  for (let read = -1; read !== 0 && filled < buffer.length; filled += read)
    read = readSync(fd, buffer, filled, buffer.length - filled, null);
  return filled;
}

interface Entry {
  readonly at: number;
  readonly crc: number;
  readonly packedBytes: number;
  readonly bytes: number;
}

function record(...fields: readonly (readonly [bytes: 2 | 4 | 8, value: number])[]): Buffer {
  const buffer = Buffer.alloc(fields.reduce((sum, [bytes]) => sum + bytes, 0));
  let at = 0;
  for (const [bytes, value] of fields) {
    if (bytes === 8) buffer.writeBigUInt64LE(BigInt(value), at);
    else buffer.writeUIntLE(value, at, bytes);
    at += bytes;
  }
  return buffer;
}

/** What local and central headers begin with, behind signature and versions. */
function common(path: string, { crc, packedBytes, bytes }: Omit<Entry, "at">): Buffer {
  const fields = [
    [2, FLAGS],
    [2, DEFLATED],
    [2, 0],
    [2, DATE],
    [4, crc],
    [4, packedBytes],
    [4, bytes],
  ] as const;
  return record(...fields, [2, Buffer.byteLength(path)], [2, 0]);
}

function localHeader(path: string): Buffer {
  const unknown = { crc: 0, packedBytes: 0, bytes: 0 };
  return Buffer.concat([record([4, 0x04034b50], [2, VERSION]), common(path, unknown), Buffer.from(path)]);
}

function descriptor({ crc, packedBytes, bytes }: Entry): Buffer {
  return record([4, 0x08074b50], [4, crc], [4, packedBytes], [4, bytes]);
}

function centralHeader({ path, isExecutable }: FileToPack, entry: Entry): Buffer {
  // Read permission for all: the function is not the owner.
  const mode = 0o100444 | (isExecutable ? 0o111 : 0);
  const rest = record([2, 0], [2, 0], [2, 0], [4, mode * 0x10000], [4, entry.at]);
  return Buffer.concat([
    record([4, 0x02014b50], [2, MADE_ON_UNIX | VERSION], [2, VERSION]),
    common(path, entry),
    rest,
    Buffer.from(path),
  ]);
}

function end(count: number, directoryAt: number, directoryBytes: number, many: number): Buffer {
  const short = count < many ? count : MANY;
  const last = record([4, 0x06054b50], [2, 0], [2, 0], [2, short], [2, short], [4, directoryBytes], [4, directoryAt], [2, 0]);
  if (count < many) return last;
  const versions = [
    [2, MADE_ON_UNIX | VERSION_64],
    [2, VERSION_64],
  ] as const;
  const counts = [
    [8, count],
    [8, count],
    [8, directoryBytes],
    [8, directoryAt],
  ] as const;
  const end64 = record([4, 0x06064b50], [8, 44], ...versions, [4, 0], [4, 0], ...counts);
  const locator = record([4, 0x07064b50], [4, 0], [8, directoryAt + directoryBytes], [4, 1]);
  return Buffer.concat([end64, locator, last]);
}
