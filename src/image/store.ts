/**
 * An image's directory: `manifest`, `pages` (the page space), `tmp` (contents of temporary files, absent when there are
 * none), `working-set`, and `base`, a hard link to the page space of the base image (only if it has one). Written into a temporary directory, flushed, renamed: an image exists whole or not at all.
 */
import { createHash } from "node:crypto";
import { statSync } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { errorText, ThawError } from "../base/errors.js";
import { writeFileDurably } from "../base/fsync.js";
import { decodeManifestInTurns, encodeManifest, type Manifest, type RawManifest } from "./manifest.js";
import { decodeWorkingSet, encodeWorkingSet, type WorkingSet } from "./working-set.js";

/** Paths of an image's files. */
export function imageFiles(dir: string): {
  manifest: string;
  pages: string;
  tmp: string;
  workingSet: string;
  /** REAP's recording (reap-set.ts). */
  reapTrace: string;
  reapSet: string;
} {
  return {
    manifest: join(dir, "manifest"),
    pages: join(dir, "pages"),
    tmp: join(dir, "tmp"),
    workingSet: join(dir, "working-set"),
    reapTrace: join(dir, "reap-trace"),
    reapSet: join(dir, "reap-set"),
  };
}

/** The image's own link to the page space of its base, where it has one. */
export function basePath(dir: string): string {
  return join(dir, "base");
}

/** What is read of an image before it is used. The pages stay on disk. */
export interface StoredImage {
  readonly dir: string;
  readonly manifest: Manifest;
  /** Contents of temporary files. */
  readonly contents: Buffer;
  /** Undefined when none was recorded yet. */
  readonly workingSet: WorkingSet | undefined;
  /** Set when a working set was there but could not be used. */
  readonly workingSetDamaged: boolean;
}

function damaged(path: string, why: string, cause?: unknown): ThawError {
  return new ThawError("IMAGE_DAMAGED", {
    what: `the image file ${path} cannot be used`,
    why,
    fix: "the function boots and is frozen anew",
    details: { path },
    ...(cause === undefined ? {} : { cause }),
  });
}

/** What the temporary files of an image weigh and hash to, for its manifest. */
export async function describeTmp(dir: string): Promise<{ tmpBytes: number; tmpSha256: string }> {
  const bytes = await readOptional(imageFiles(dir).tmp);
  return { tmpBytes: bytes.length, tmpSha256: createHash("sha256").update(bytes).digest("hex") };
}

async function readOptional(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return Buffer.alloc(0);
    throw error;
  }
}

/** Writes the manifest into a directory that the extractor has filled. */
export async function writeManifest(dir: string, manifest: RawManifest): Promise<void> {
  await writeFileDurably(imageFiles(dir).manifest, encodeManifest(manifest));
}

/** Replaces the working set, atomically. */
export async function writeWorkingSet(dir: string, set: WorkingSet): Promise<void> {
  await writeFileDurably(imageFiles(dir).workingSet, encodeWorkingSet(set));
}

/**
 * Reads and checks everything but the bytes of the pages (see {@link pagesIdentity}).
 * @throws ThawError IMAGE_DAMAGED, IMAGE_MISMATCH
 */
export async function readImage(dir: string): Promise<StoredImage> {
  const files = imageFiles(dir);
  let bytes: Buffer;
  try {
    bytes = await readFile(files.manifest);
  } catch (error) {
    throw damaged(files.manifest, errorText(error), error);
  }
  const manifest = await decodeManifestInTurns(bytes, files.manifest);
  const contents = await readOptional(files.tmp);
  if (contents.length !== manifest.tmpBytes)
    throw damaged(files.tmp, `it holds ${contents.length} bytes where ${manifest.tmpBytes} were written`);
  if (createHash("sha256").update(contents).digest("hex") !== manifest.tmpSha256)
    throw damaged(files.tmp, "its checksum does not match");
  let size: number;
  try {
    size = (await stat(files.pages)).size;
  } catch (error) {
    throw damaged(files.pages, errorText(error), error);
  }
  if (BigInt(size) !== manifest.facts.pageSpaceBytes)
    throw damaged(files.pages, `it is ${size} bytes long where ${manifest.facts.pageSpaceBytes} were written`);
  if (manifest.base !== undefined) await checkBaseLength(basePath(dir), manifest.base);
  const recorded = await readOptional(files.workingSet);
  const workingSet = recorded.length === 0 ? undefined : decodeWorkingSet(recorded);
  return { dir, manifest, contents, workingSet, workingSetDamaged: recorded.length > 0 && workingSet === undefined };
}

async function checkBaseLength(path: string, base: NonNullable<Manifest["base"]>): Promise<void> {
  const info = await stat(path).catch((error: unknown) => {
    throw damaged(path, `the page space of its base image ${base.id} is missing: ${errorText(error)}`, error);
  });
  checkBaseBytes(path, base, BigInt(info.size));
}

function checkBaseBytes(path: string, base: NonNullable<Manifest["base"]>, bytes: bigint): void {
  if (bytes !== BigInt(base.bytes))
    throw damaged(
      path,
      `the page space of its base image ${base.id} is ${bytes} bytes long where ${BigInt(base.bytes)} were written`,
    );
}

/** Which bytes a file holds, as far as its inode tells; undefined where there is no such file. */
export type Identity = { readonly inode: bigint; readonly size: bigint; readonly ns: bigint } | undefined;

/** Whether both are of one file that nobody wrote to in between. */
export function sameIdentity(one: Identity, other: Identity): boolean {
  return one?.inode === other?.inode && one?.size === other?.size && one?.ns === other?.ns;
}

/** As {@link pagesIdentity}, for a base's page space under any of its names: every image that shares it changes its change time, by a link. */
export function baseIdentity(path: string): Identity {
  const info = statSync(path, STAT_OPTIONS);
  return info === undefined ? undefined : { inode: info.ino, size: info.size, ns: info.mtimeNs };
}

/** Compares what `extractor verify` found of the base's page space with the manifest. */
export function checkBase(manifest: Manifest, found: { digest: string; bytes: string }, dir: string): void {
  const { base } = manifest;
  if (base === undefined) return;
  checkBaseBytes(basePath(dir), base, BigInt(found.bytes));
  if (found.digest === base.digest) return;
  throw damaged(basePath(dir), `the digest of its base image ${base.id} is ${found.digest} where ${base.digest} was written`);
}

const STAT_OPTIONS = { bigint: true, throwIfNoEntry: false } as const;

/** Changes whenever somebody wrote to the page space at this path, replaced or truncated it; cheap enough for every thaw. */
export function pagesIdentity(pages: string): Identity {
  const info = statSync(pages, STAT_OPTIONS);
  return info === undefined ? undefined : { inode: info.ino, size: info.size, ns: info.ctimeNs };
}

/** Compares what `extractor verify` found with the manifest. */
export function checkPages(manifest: Manifest, found: { digest: string; bytes: string }, dir: string): void {
  const path = imageFiles(dir).pages;
  if (BigInt(found.bytes) !== manifest.facts.pageSpaceBytes)
    throw damaged(path, `it is ${BigInt(found.bytes)} bytes long where ${manifest.facts.pageSpaceBytes} were written`);
  if (found.digest !== manifest.facts.digest)
    throw damaged(path, `its digest is ${found.digest} where ${manifest.facts.digest} was written`);
}

/** Bytes that the files of an image occupy on disk (holes do not count, nor does the base, which it shares). */
export async function bytesOnDisk(dir: string): Promise<number> {
  let bytes = 0;
  for (const path of Object.values(imageFiles(dir))) {
    try {
      bytes += (await stat(path)).blocks * 512;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
  }
  return bytes;
}
