/**
 * Small files beside an image whose loss costs speed and nothing else: one line `<name> <version> <sha256 of what follows> <bytes of
 * what follows>`, then compressed JSON.
 */
import { createHash } from "node:crypto";
import { gunzipSync, gzipSync } from "node:zlib";

const HEADER = /^([a-z-]+) (\d+) ([0-9a-f]{64}) (\d+)\n/;
const HEADER_BYTES_MAX = 128;
const JSON_BYTES_MAX = 64 * 1024 * 1024;

function digestOf(body: Buffer): string {
  return createHash("sha256").update(body).digest("hex");
}

/** The bytes of such a file. `name`: lower-case letters and dashes. */
export function encodeSealed(name: string, version: number, value: object): Buffer {
  const body = gzipSync(JSON.stringify(value));
  return Buffer.concat([Buffer.from(`${name} ${version} ${digestOf(body)} ${body.length}\n`), body]);
}

/** What it holds, to be checked by the caller's schema; undefined when it is damaged in any way, of another name or version. */
export function decodeSealed(name: string, version: number, bytes: Buffer): unknown {
  const match = HEADER.exec(bytes.toString("latin1", 0, HEADER_BYTES_MAX));
  if (match === null || match[1] !== name || Number(match[2]) !== version) return undefined;
  const body = bytes.subarray(match[0].length);
  if (String(body.length) !== match[4] || digestOf(body) !== match[3]) return undefined;
  try {
    return JSON.parse(gunzipSync(body, { maxOutputLength: JSON_BYTES_MAX }).toString("utf8"));
  } catch {
    return undefined;
  }
}
