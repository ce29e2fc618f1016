/**
 * What functions print. Each request becomes one entry in Lambda's text form:
 *
 *     START RequestId: <id> Version: $LATEST
 *     <stdout and stderr, in order>
 *     <why it was ended without an answer>
 *     END RequestId: <id>
 *     REPORT RequestId: <id>\tDuration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 45 MB
 *
 * Kept twice: the newest entries in memory (at most {@link RING_BYTES} a function, of a longer one its end), and all of them in
 * `logs/<name>.log`, which is moved to `<name>.log.1` when it reaches {@link FILE_BYTES}. So a function's logs take at most 20 MiB of
 * disk. The file is written behind the requests, in batches; a crash loses the last batch.
 */
import { statSync } from "node:fs";
import { appendFile, open, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { KIB } from "../base/units.js";
import type { InvokeResult, StartResult } from "../engine/types.js";
import { type FollowOptions, LATEST, LIMITS, type LogEntry } from "./types.js";

/** In memory, for each function. */
const RING_BYTES = 256 * 1024;
/** A log file is moved away at this size. */
export const FILE_BYTES = 10 * 1024 * 1024;
/** What is waiting for a slow disk beyond this is dropped, and the log says so. */
const PENDING_BYTES_MAX = 32 * 1024 * 1024;
/** What a slow reader may lag behind before it loses the oldest: so many entries, or more than one of so many characters together. */
const FOLLOW_ENTRIES_MAX = 10_000;
const FOLLOW_LENGTH_MAX = 16 * 1024 * 1024;
const TAIL_BYTES_DEFAULT = 64 * 1024;

/** What was printed, its last line ended. */
export function wholeLines(printed: Buffer): string {
  const text = printed.toString("utf8");
  return text === "" || text.endsWith("\n") ? text : `${text}\n`;
}

/** The text of one request. */
export function renderRequest(requestId: string, memoryMb: number, start: StartResult, result: InvokeResult): string {
  const output = wholeLines(result.logs) + endText(result);
  const startMs = start.us / 1000;
  const ms = Math.max(result.handlerMs, result.totalMs - startMs - start.waitUs / 1000);
  const begun =
    start.kind === "reuse" ? "" : `\t${start.kind === "boot" ? "Init" : "Restore"} Duration: ${startMs.toFixed(2)} ms`;
  const status =
    result.platformError === undefined ? "" : `\tStatus: ${result.platformError === "TIMEOUT" ? "timeout" : "error"}`;
  return (
    `START RequestId: ${requestId} Version: ${LATEST}\n${output}END RequestId: ${requestId}\n` +
    `REPORT RequestId: ${requestId}\tDuration: ${ms.toFixed(2)} ms\tBilled Duration: ${Math.ceil(ms)} ms\t` +
    `Memory Size: ${memoryMb} MB\tMax Memory Used: ${Math.round(result.maxMemoryMb)} MB${begun}${status}\n`
  );
}

/** What the reply says of an end that nothing printed tells of. Of a failed load it is in the output (outcome.ts). */
function endText({ platformError, payload }: InvokeResult): string {
  if (platformError === undefined || platformError === "INIT_FAILED") return "";
  const { errorMessage } = errorOf(payload);
  return typeof errorMessage === "string" ? `${errorMessage}\n` : "";
}

/** What the server or a runtime says of an end is shorter. */
const END_BYTES_MAX = 64 * KIB;

/** Of an end that a function claims the reply may be anything, and to read a long one holds up everybody. */
function errorOf(payload: Buffer): Readonly<Record<string, unknown>> {
  if (payload.length > END_BYTES_MAX) return {};
  try {
    return Object(JSON.parse(payload.toString())) as Readonly<Record<string, unknown>>;
  } catch {
    return {};
  }
}

/** The last {@link LIMITS}.logTailBytes of a request's text, beginning with a whole character. */
export function tailOf(text: string): Buffer {
  const bytes = Buffer.from(text);
  return lastBytes(bytes, LIMITS.logTailBytes);
}

function lastBytes(bytes: Buffer, limit: number): Buffer {
  if (bytes.length <= limit) return bytes;
  let from = bytes.length - limit;
  while (from < bytes.length && ((bytes[from] ?? 0) & 0xc0) === 0x80) from++;
  return bytes.subarray(from);
}

/** The log of one function. */
export class FunctionLog {
  readonly #path: string;
  readonly #onWriteFailure: (error: unknown, again: boolean) => void;
  #failing = false;
  /** Of this turn of the event loop. */
  #fresh: { readonly atMs: number; readonly requestId: string; readonly text: string | (() => string) }[] = [];
  #ring: LogEntry[] = [];
  #ringBytes = 0;
  #fileBytes: number;
  #pending: string[] = [];
  #pendingBytes = 0;
  #dropped = 0;
  #writing: Promise<void> | undefined;
  #ended = false;
  readonly #followers = new Set<Follower>();

  /** @param onWriteFailure called for each batch that is lost; `again`: so was the one before */
  constructor(dir: string, name: string, onWriteFailure: (error: unknown, again: boolean) => void) {
    this.#path = join(dir, `${name}.log`);
    this.#onWriteFailure = onWriteFailure;
    this.#fileBytes = statSync(this.#path, { throwIfNoEntry: false })?.size ?? 0;
  }

  /** Appends an entry. Never waits, never fails: what cannot be written is counted. What has to be rendered is so a moment later: no answer waits for its log. */
  append(requestId: string, text: string | (() => string)): void {
    if (this.#ended) return;
    if (this.#fresh.length === 0) setImmediate(() => this.#takeFresh());
    this.#fresh.push({ atMs: Date.now(), requestId, text });
  }

  /** Requests that end in one turn of the event loop share one write. */
  #takeFresh(): void {
    for (const { text, ...entry } of this.#fresh.splice(0))
      this.#take({ ...entry, text: typeof text === "string" ? text : text() });
    if (this.#pending.length > 0) this.#writing ??= this.#write();
  }

  #take(entry: LogEntry): void {
    const { text } = entry;
    const kept = text.length <= RING_BYTES ? entry : { ...entry, text: endOf(text) };
    this.#ring.push(kept);
    this.#ringBytes += kept.text.length;
    while (this.#ringBytes > RING_BYTES && this.#ring.length > 1) this.#ringBytes -= this.#ring.shift()?.text.length ?? 0;
    for (const follower of this.#followers) follower.push(entry);
    if (this.#pendingBytes > PENDING_BYTES_MAX) {
      this.#dropped += 1;
      return;
    }
    this.#pending.push(text);
    this.#pendingBytes += text.length;
  }

  /** The last lines, at most `bytes`, from the file: also what a former server wrote. */
  async tail(bytes = TAIL_BYTES_DEFAULT): Promise<string> {
    await this.flush();
    const current = await readTail(this.#path, bytes);
    const older = current.length < bytes ? await readTail(`${this.#path}.1`, bytes - current.length) : Buffer.alloc(0);
    const text = Buffer.concat([older, current]);
    const cut = text.length >= bytes ? text.indexOf(0x0a) + 1 : 0;
    return text.subarray(cut).toString("utf8");
  }

  async *follow(options: FollowOptions = {}): AsyncGenerator<LogEntry, void, undefined> {
    this.#takeFresh();
    const follower = new Follower(options.backlog === false ? [] : this.#ring, options.signal);
    if (this.#ended) follower.end();
    this.#followers.add(follower);
    try {
      yield* follower.entries();
    } finally {
      this.#followers.delete(follower);
      follower.end();
    }
  }

  /** Resolves when everything appended so far was handed to the file. */
  async flush(): Promise<void> {
    this.#takeFresh();
    while (this.#writing !== undefined) await this.#writing;
  }

  /** Ends all followers and writes what is pending. */
  async close(): Promise<void> {
    this.#takeFresh();
    this.#ended = true;
    for (const follower of this.#followers) follower.end();
    await this.flush();
  }

  /** Closes, and removes the files. */
  async remove(): Promise<void> {
    await this.close();
    await rm(this.#path, { force: true });
    await rm(`${this.#path}.1`, { force: true });
    this.#ring = [];
  }

  async #write(): Promise<void> {
    while (this.#pending.length > 0) {
      if (this.#dropped > 0) {
        this.#pending.push(`thaw: ${this.#dropped} requests were not logged: the disk is too slow\n`);
        this.#dropped = 0;
      }
      const bytes = Buffer.from(this.#pending.join(""));
      this.#pending = [];
      this.#pendingBytes = 0;
      try {
        for (const part of fileParts(bytes)) await this.#writePart(part);
        this.#failing = false;
      } catch (error) {
        this.#onWriteFailure(error, this.#failing);
        this.#failing = true;
      }
    }
    this.#writing = undefined;
  }

  async #writePart(part: Buffer): Promise<void> {
    if (this.#fileBytes > 0 && this.#fileBytes + part.length > FILE_BYTES) {
      await rename(this.#path, `${this.#path}.1`).catch(unlessMissing);
      this.#fileBytes = 0;
    }
    await appendFile(this.#path, part, { mode: 0o600 });
    this.#fileBytes += part.length;
  }
}

/** What a file holds at most each; cut behind a line where there is one. */
function* fileParts(bytes: Buffer): Generator<Buffer> {
  let from = 0;
  while (bytes.length - from > FILE_BYTES) {
    const line = bytes.lastIndexOf(0x0a, from + FILE_BYTES - 1);
    const to = line < from ? from + FILE_BYTES : line + 1;
    yield bytes.subarray(from, to);
    from = to;
  }
  yield bytes.subarray(from);
}

/** The end of an entry that is too long to be kept whole. A text of its own: a part of it would keep the whole in memory. */
function endOf(text: string): string {
  const bytes = lastBytes(Buffer.from(text), RING_BYTES);
  const line = bytes.indexOf(0x0a) + 1;
  return bytes.subarray(line < bytes.length ? line : 0).toString("utf8");
}

/** One reader: a bounded queue that somebody awaits. */
class Follower {
  readonly #queue: LogEntry[];
  #queuedLength: number;
  #lost = 0;
  #ended = false;
  #wake: (() => void) | undefined;

  constructor(backlog: readonly LogEntry[], signal: AbortSignal | undefined) {
    this.#queue = [...backlog];
    this.#queuedLength = backlog.reduce((sum, { text }) => sum + text.length, 0);
    if (signal?.aborted === true) this.#ended = true;
    signal?.addEventListener("abort", () => this.end(), { once: true });
  }

  push(entry: LogEntry): void {
    this.#queue.push(entry);
    this.#queuedLength += entry.text.length;
    while (this.#queue.length > FOLLOW_ENTRIES_MAX || (this.#queuedLength > FOLLOW_LENGTH_MAX && this.#queue.length > 1)) {
      this.#take();
      this.#lost += 1;
    }
    this.#wake?.();
  }

  end(): void {
    this.#ended = true;
    this.#wake?.();
  }

  #take(): LogEntry | undefined {
    const entry = this.#queue.shift();
    this.#queuedLength -= entry?.text.length ?? 0;
    return entry;
  }

  async *entries(): AsyncGenerator<LogEntry, void, undefined> {
    while (true) {
      if (this.#lost > 0) {
        const text = `thaw: ${this.#lost} requests are missing here: this reader is too slow\n`;
        this.#lost = 0;
        yield { atMs: Date.now(), requestId: "", text };
      }
      const entry = this.#take();
      if (entry !== undefined) yield entry;
      else if (this.#ended) return;
      else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        this.#wake = undefined;
      }
    }
  }
}

/** Somebody who made room on the disk may have removed the file; the next batch begins another. */
function unlessMissing(error: NodeJS.ErrnoException): void {
  if (error.code !== "ENOENT") throw error;
}

async function readTail(path: string, bytes: number): Promise<Buffer> {
  let file: Awaited<ReturnType<typeof open>>;
  try {
    file = await open(path, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return Buffer.alloc(0);
    throw error;
  }
  try {
    const { size } = await file.stat();
    const length = Math.min(size, bytes);
    const buffer = Buffer.alloc(length);
    const { bytesRead } = await file.read(buffer, 0, length, size - length);
    return buffer.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}
