/**
 * The manifest: the truth about an image. One line of header, then JSON, compressed (register states and lists of pages
 * shrink to a sixth):
 *
 * ```
 * thaw-manifest <format> <sha256 of what follows, hex> <bytes of what follows>\n<gzip of JSON>
 * ```
 *
 * Everything else in an image's directory is either described by it (`pages`, `tmp`) or can be thrown away (`working-set`).
 */
import { createHash } from "node:crypto";
import { gunzipSync, gzipSync } from "node:zlib";
import { errorText, ThawError } from "../base/errors.js";
import { z } from "../base/schema.js";
import { factsSchema, regionsInTurns } from "./facts.js";

/** Bumped when an older reader could misunderstand a newer image. */
export const IMAGE_VERSION = 5;

/** A function, as an image keeps it. */
export const specSchema = z.object({
  name: z.string(),
  version: z.string(),
  runtime: z.string(),
  codeDir: z.string(),
  handler: z.string(),
  memoryMb: z.number(),
  timeoutMs: z.number(),
  env: z.record(z.string(), z.string()),
  tmpMb: z.number(),
});

const reportSchema = z.object({
  hygieneMs: z.number(),
  stoppedMs: z.number(),
  totalMs: z.number(),
  anonymousBytes: z.number(),
  storedBytes: z.number(),
  // Absent in images of a former version; held only by a live freeze.
  heldMs: z.number().exactOptional(),
  copiedAheadBytes: z.number().exactOptional(),
  rounds: z.int().nonnegative().exactOptional(),
  copiedStoppedBytes: z.number().exactOptional(),
  notes: z.array(z.string()),
});

/** As the runtime told it; checked when it arrived (src/runtime/frames.ts), and bounded here too. */
const codeSchema = z.object({
  functions: z.int().nonnegative(),
  tiers: z.record(z.string().max(16), z.int().nonnegative()).refine((tiers) => Object.keys(tiers).length <= 8, "at most 8 tiers"),
  codeBytes: z.int().nonnegative().exactOptional(),
});

const manifestSchema = z.object({
  id: z.string(),
  createdMs: z.number(),
  generation: z.int().nonnegative(),
  heat: z.int().nonnegative(),
  /** How far the function's code was optimised. Absent where the runtime does not tell, and in images of former versions. */
  code: codeSchema.optional(),
  spec: specSchema,
  /** Every pid under which a process of this lineage ran; a thaw runs under another one (equal pids mean equal OpenSSL randomness). */
  lineagePids: z.array(z.int().positive()),
  fingerprint: z.object({
    kernel: z.string(),
    cpu: z.string(),
    /** The boot during which the image was made: the monotonic clock is comparable only within it. */
    bootId: z.string(),
    /** Digest of the runtime that is in it. Absent in images of a thaw that did not note it. */
    runtime: z.string().optional(),
  }),
  report: reportSchema,
  /** The image whose page space this one shares; its file lies, as a hard link, in this image's directory. */
  base: z.object({ id: z.string(), digest: z.string(), bytes: z.string() }).optional(),
  tmpBytes: z.int().nonnegative(),
  tmpSha256: z.string(),
  facts: factsSchema,
});

/** A manifest as read. `facts` holds bigints and buffers; {@link encodeManifest} takes the raw JSON form. */
export type Manifest = z.output<typeof manifestSchema>;
/** A manifest as written: plain JSON values. */
export type RawManifest = z.input<typeof manifestSchema>;

const MANIFEST_BYTES_MAX = 256 * 1024 * 1024;
const HEADER = /^thaw-manifest (\d+) ([0-9a-f]{64}) (\d+)\n/;

/** The bytes of a manifest file. */
export function encodeManifest(manifest: RawManifest): Buffer {
  const body = gzipSync(JSON.stringify(manifest));
  const digest = createHash("sha256").update(body).digest("hex");
  return Buffer.concat([Buffer.from(`thaw-manifest ${IMAGE_VERSION} ${digest} ${body.length}\n`), body]);
}

function damaged(path: string, why: string): ThawError {
  return new ThawError("IMAGE_DAMAGED", {
    what: `the image's manifest ${path} cannot be used`,
    why,
    fix: "the function boots and is frozen anew; nothing needs to be done unless this happens again (then look at the disk)",
    details: { path },
  });
}

/**
 * Checks a manifest file and returns its JSON, not yet held against the schema: for tools that rewrite manifests.
 * @param path only for messages
 * @throws ThawError IMAGE_DAMAGED with the offset, or IMAGE_MISMATCH for a format of another version
 */
export function decodeRawManifest(bytes: Buffer, path: string): RawManifest {
  const head = bytes.toString("latin1", 0, 128);
  const match = HEADER.exec(head);
  if (match === null) throw damaged(path, "it does not begin with a thaw-manifest line (offset 0)");
  const [line, version, digest, length] = match;
  if (Number(version) !== IMAGE_VERSION) {
    throw new ThawError("IMAGE_MISMATCH", {
      what: `the image ${path} has format ${version}`,
      why: `this thaw reads format ${IMAGE_VERSION}`,
      fix: "the function boots and is frozen anew",
    });
  }
  const body = bytes.subarray(line.length);
  if (body.length !== Number(length)) {
    throw damaged(path, `it holds ${body.length} bytes behind its header where ${length} were written (offset ${bytes.length})`);
  }
  if (createHash("sha256").update(body).digest("hex") !== digest) {
    throw damaged(path, `its checksum does not match its ${body.length} bytes (from offset ${line.length})`);
  }
  let value: unknown;
  try {
    value = JSON.parse(gunzipSync(body, { maxOutputLength: MANIFEST_BYTES_MAX }).toString("utf8"));
  } catch (error) {
    throw damaged(path, errorText(error));
  }
  return value as RawManifest;
}

function checked(raw: unknown, path: string): Manifest {
  const parsed = manifestSchema.safeParse(raw);
  if (!parsed.success) throw damaged(path, z.prettifyError(parsed.error));
  return parsed.data;
}

/** Checks and parses a manifest file; every member too. Errors as {@link decodeRawManifest}. */
export function decodeManifest(bytes: Buffer, path: string): Manifest {
  return checked(decodeRawManifest(bytes, path), path);
}

/** The same, of an image with many mappings in turns of the event loop. */
export async function decodeManifestInTurns(bytes: Buffer, path: string): Promise<Manifest> {
  const raw = decodeRawManifest(bytes, path);
  const told: unknown = Object(raw).facts;
  const regions = await regionsInTurns(told);
  if (regions === undefined) return checked(raw, path);
  const manifest = checked({ ...raw, facts: { ...Object(told), regions: [] } }, path);
  return { ...manifest, facts: { ...manifest.facts, regions } };
}
