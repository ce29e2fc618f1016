/**
 * What a command touches outside itself, as one argument, so that tests run commands in the same process and see what
 * a user sees. Also the form of everything printed for people: aligned tables, errors as what, why and fix.
 */
import { constants, createReadStream, openSync } from "node:fs";
import { stat } from "node:fs/promises";
import { Socket } from "node:net";
import { addAbortSignal, type Readable } from "node:stream";
import { errorText, ThawError } from "../base/errors.js";

/** Streams, environment and directory of one run of the CLI. */
export interface Io {
  /** Resolves when the text was taken, so that a slow reader slows the command and memory stays bounded. */
  out(text: string | Buffer): Promise<void>;
  err(text: string): void;
  /** All of standard input, up to the first bytes beyond `bytesMax`. Interrupted by `stop`. */
  readInput(bytesMax: number): Promise<Buffer>;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly cwd: string;
  /** Aborted at the first SIGINT or SIGTERM. */
  readonly stop: AbortSignal;
  /** Whether stderr is a terminal, so that progress may overwrite its line. */
  readonly interactive: boolean;
}

/** Exit codes: scripts can tell a wrong command line and a function's own error from a failure of ours. */
export const EXIT = { ok: 0, failed: 1, usage: 2, functionError: 3 } as const;

/** Ends a command with a code, after it has said everything itself. */
export class Exit extends Error {
  constructor(readonly code: number) {
    super(`exit ${code}`);
  }
}

/** A signal ended the command before the server's reply. */
export class Interrupted extends Error {}

/** What a stream holds, up to the first bytes beyond `bytesMax`: some never end. Throws Interrupted when `stop` comes first. */
export async function readUpTo(stream: Readable, bytesMax: number, stop: AbortSignal): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of addAbortSignal(stop, stream)) {
      chunks.push(chunk as Buffer);
      bytes += (chunk as Buffer).length;
      if (bytes > bytesMax) break;
    }
  } catch (error) {
    if (stop.aborted) throw new Interrupted();
    throw error;
  }
  return Buffer.concat(chunks);
}

/** As {@link readUpTo}, of a file, a device or a FIFO. */
export async function readFileUpTo(path: string, bytesMax: number, stop: AbortSignal): Promise<Buffer> {
  // A FIFO without waiting for who writes to it, which nothing could interrupt: its bytes are waited for.
  const stream = (await stat(path)).isFIFO()
    ? new Socket({ fd: openSync(path, constants.O_RDONLY | constants.O_NONBLOCK), readable: true, writable: false })
    : createReadStream(path);
  return readUpTo(stream, bytesMax, stop);
}

const BYTE_ORDER_MARK = Buffer.from("\ufeff");

/** The bytes without the mark that some editors write before a text. It cannot be seen, and is no part of JSON. */
export function withoutMark(bytes: Buffer): Buffer {
  return bytes.subarray(0, BYTE_ORDER_MARK.length).equals(BYTE_ORDER_MARK) ? bytes.subarray(BYTE_ORDER_MARK.length) : bytes;
}

/**
 * An error as lines for people. The first says what failed; why and fix follow when they are known.
 *
 *     error: function "hello" does not exist
 *       why: no function of that name was deployed
 *       fix: `thaw ls` lists what is there
 */
export function formatError(error: unknown): string {
  if (!(error instanceof ThawError)) return `error: ${printableLines(errorText(error))}\n`;
  const lines = [`error: ${error.what}`];
  if (error.why !== undefined) lines.push(`  why: ${error.why}`);
  if (error.fix !== undefined) lines.push(`  fix: ${error.fix}`);
  return `${lines.map(printableLines).join("\n")}\n`;
}

/** An error as one JSON line, for `--json`. */
export function errorJson(error: unknown): string {
  const plain = error instanceof ThawError ? error.toJSON() : { code: "INTERNAL", what: errorText(error), details: {} };
  return `${JSON.stringify({ error: plain })}\n`;
}

/** Rows under their headings, columns padded to the widest cell and parted by two spaces; no space at line ends. */
export function formatTable(headings: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [headings, ...rows].map((row) => row.map(printable));
  const widths = headings.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)));
  return all
    .map(
      (row) =>
        `${row
          .map((cell, column) => cell.padEnd(widths[column] ?? 0))
          .join("  ")
          .trimEnd()}\n`,
    )
    .join("");
}

/** Names and values, the values in one column. */
export function formatPairs(pairs: readonly (readonly [string, string])[]): string {
  const width = Math.max(...pairs.map(([name]) => name.length));
  return pairs
    .map(([name, value]) => `${name.padEnd(width)}  ${printable(value)}`.trimEnd())
    .join("\n")
    .concat("\n");
}

/** As {@link printable}, of text that may have lines: an error holds what a function, or another program's server, said. */
export function printableLines(text: string): string {
  return text.split("\n").map(printable).join("\n");
}

/** Text from elsewhere without control characters, which could rewrite the reader's terminal. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, " ");
}
