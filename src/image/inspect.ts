/** What an image consists of, in plain data, for people who look at one. */
import { stat } from "node:fs/promises";
import { type Facts, storedPages } from "./facts.js";
import { basePath, imageFiles, type StoredImage } from "./store.js";
import { runPages } from "./working-set.js";

/** Pages are 4 KiB each. */
export interface ImageInspection {
  readonly formatVersion: number;
  readonly createdMs: number;
  readonly kernel: string;
  readonly cpu: string;
  /** Pids of the lineage; a thaw runs under another one. */
  readonly lineagePids: readonly number[];
  readonly threads: readonly string[];
  /** Number of mappings by kind: anonymous, heap, stack, of a file, overlay over a file, of the base image. */
  readonly mappings: Readonly<Record<string, number>>;
  readonly mappedFiles: readonly string[];
  readonly descriptors: readonly string[];
  readonly tmpFiles: number;
  readonly pages: {
    readonly stored: number;
    /** Of the working set; undefined until one was recorded. */
    readonly written?: number;
    readonly read?: number;
    readonly faults?: number;
  };
  /** Set when a working set was there but damaged. */
  readonly workingSetDamaged: boolean;
  /** The base image whose pages it shares, if it was made from one; not part of `bytes`. */
  readonly base?: { readonly id: string; readonly sharedPages: number; readonly bytes: number; readonly images: number };
  readonly bytes: Readonly<Record<string, number>>;
}

/** Summarises an image that was read and checked. */
export async function inspectImage(image: StoredImage, formatVersion: number): Promise<ImageInspection> {
  const { manifest, workingSet } = image;
  const { facts } = manifest;
  const bytes: Record<string, number> = {};
  for (const [name, path] of Object.entries(imageFiles(image.dir))) {
    const info = await stat(path).catch(() => undefined);
    if (info !== undefined) bytes[name] = info.blocks * 512;
  }
  const shared = await stat(basePath(image.dir)).catch(() => undefined);
  const count = (base: boolean): number =>
    facts.regions.reduce((sum, region) => sum + ((region.kind === "base") === base ? storedPages(region) : 0), 0);
  return {
    formatVersion,
    createdMs: manifest.createdMs,
    kernel: manifest.fingerprint.kernel,
    cpu: manifest.fingerprint.cpu.slice(0, 16),
    lineagePids: manifest.lineagePids,
    threads: facts.threads.map(({ name }) => name),
    mappings: countBy(facts.regions.map(({ kind }) => kind)),
    mappedFiles: [
      ...new Set(
        facts.regions.flatMap(({ kind, path }) => ((kind === "file" || kind === "shared") && path !== undefined ? [path] : [])),
      ),
    ],
    descriptors: describeDescriptors(facts),
    tmpFiles: facts.tmp.length,
    pages: {
      stored: count(false),
      ...(workingSet === undefined
        ? {}
        : { written: runPages(workingSet.written), read: runPages(workingSet.read), faults: workingSet.faults }),
    },
    workingSetDamaged: image.workingSetDamaged,
    ...(manifest.base === undefined || shared === undefined
      ? {}
      : { base: { id: manifest.base.id, sharedPages: count(true), bytes: shared.blocks * 512, images: shared.nlink } }),
    bytes,
  };
}

function countBy(words: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const word of words) counts[word] = (counts[word] ?? 0) + 1;
  return counts;
}

function describeDescriptors(facts: Facts): string[] {
  return facts.descriptors.map(
    (one) => `${one.fd} ${"path" in one ? `${one.kind} ${one.path}` : one.kind === "same" ? `same as ${one.as}` : one.kind}`,
  );
}
