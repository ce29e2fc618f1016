/** What an image consists of, in plain data, for people who look at one. */
import { stat } from "node:fs/promises";
import { nextTurn } from "../base/turns.js";
import { type Facts, isFile, storedPages } from "./facts.js";
import { IMAGE_VERSION, type Manifest } from "./manifest.js";
import { classify, type PageClasses, prefetchRanges } from "./prefetch.js";
import { basePath, imageFiles, type StoredImage } from "./store.js";
import type { RunOrder, WorkingSet } from "./working-set.js";

/** Pages are 4 KiB each. */
export interface ImageInspection {
  readonly formatVersion: number;
  readonly createdMs: number;
  readonly generation: number;
  /** Requests served before the freeze. */
  readonly heat: number;
  /** How far the function's own code was optimised; absent where the runtime did not tell. */
  readonly code?: Manifest["code"];
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
  };
  /** Absent until something was recorded. */
  readonly workingSet?: WorkingSetInspection;
  /** Set when a working set was there but damaged. */
  readonly workingSetDamaged: boolean;
  /** The base image whose pages it shares, if it was made from one; not part of `bytes`. */
  readonly base?: { readonly id: string; readonly sharedPages: number; readonly bytes: number; readonly images: number };
  readonly bytes: Readonly<Record<string, number>>;
}

/** A working set in figures. */
export interface WorkingSetInspection {
  readonly recordings: number;
  /** No more recordings are made unless it goes stale. */
  readonly stable: boolean;
  /** False where the kernel's fault-around could not be switched off: pages are in it that nobody touched. */
  readonly exact: boolean;
  readonly order: RunOrder;
  /** Copied ahead of the function. */
  readonly written: PageClasses;
  readonly read: PageClasses;
  /** Parts of files that a start reads from a cold disk. */
  readonly ranges: number;
  readonly rangeBytes: number;
  /** Those of them that lie in the page space are neighbours on the disk (engine/packing.ts). */
  readonly packed: boolean;
  /** The function's own code has not run in all of the recordings. */
  readonly rehearsed: boolean;
  /** Of the last recorded start, all by demand. */
  readonly faults: number;
  /** Faults outside the set of the last starts since the server opened the image, newest last. */
  readonly outside: readonly number[];
  /** How often it went stale since then. */
  readonly renewals: number;
}

/** What only an open image knows of its working set. */
export interface RecentStarts {
  readonly outside: readonly number[];
  readonly renewals: number;
}

async function inspectWorkingSet(facts: Facts, set: WorkingSet, recent: RecentStarts): Promise<WorkingSetInspection> {
  const ranges = prefetchRanges(facts, set);
  await nextTurn();
  const written = classify(facts, set.written);
  await nextTurn();
  const { recordings, stable, exact, order, faults } = set;
  return {
    recordings,
    stable,
    exact,
    order,
    written,
    read: classify(facts, set.read),
    ranges: ranges.length,
    rangeBytes: ranges.reduce((sum, { bytes }) => sum + bytes, 0),
    packed: set.packed === true,
    rehearsed: set.rehearsed === true,
    faults,
    ...recent,
  };
}

/** Summarises an image that was read and checked. */
export async function inspectImage(image: StoredImage, recent: RecentStarts): Promise<ImageInspection> {
  const { manifest, workingSet } = image;
  const { facts } = manifest;
  const bytes: Record<string, number> = {};
  for (const [name, path] of Object.entries(imageFiles(image.dir))) {
    const info = await stat(path).catch(() => undefined);
    if (info !== undefined) bytes[name] = info.blocks * 512;
  }
  const seen = workingSet === undefined ? {} : { workingSet: await inspectWorkingSet(facts, workingSet, recent) };
  const shared = await stat(basePath(image.dir)).catch(() => undefined);
  const count = (base: boolean): number =>
    facts.regions.reduce((sum, region) => sum + ((region.kind === "base") === base ? storedPages(region) : 0), 0);
  return {
    formatVersion: IMAGE_VERSION,
    createdMs: manifest.createdMs,
    generation: manifest.generation,
    heat: manifest.heat,
    ...(manifest.code === undefined ? {} : { code: manifest.code }),
    kernel: manifest.fingerprint.kernel,
    cpu: manifest.fingerprint.cpu.slice(0, 16),
    lineagePids: manifest.lineagePids,
    threads: facts.threads.map(({ name }) => name),
    mappings: countBy(facts.regions.map(({ kind }) => kind)),
    mappedFiles: [...new Set(facts.regions.filter(isFile).flatMap(({ path }) => path ?? []))],
    descriptors: describeDescriptors(facts),
    tmpFiles: facts.tmp.length,
    pages: { stored: count(false) },
    ...seen,
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
