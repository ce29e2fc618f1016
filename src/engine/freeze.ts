/**
 * Freezing: hygiene, stop, copy, go on, store. The process is stopped only while the extractor copies (native/extractor.c); files are
 * written, compiled and flushed while it runs again. The image appears by one rename, or not at all. A live freeze holds requests
 * back only for the stop (live-freeze.ts).
 */

import { randomUUID } from "node:crypto";
import { link, mkdir, readFile, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { nowMs } from "../base/clock.js";
import { ThawError } from "../base/errors.js";
import { faultPoint } from "../base/fault.js";
import { fsyncTree, mkdirs, renameDurably, temporaryPath } from "../base/fsync.js";
import { nextTurn } from "../base/turns.js";
import { PAGE_BYTES } from "../base/units.js";
import {
  basePath,
  CONTROL_FD,
  checkFacts,
  compileThaw,
  describeTmp,
  findDatabases,
  imageFiles,
  parseFacts,
  type RawManifest,
  writeManifest,
} from "../image/index.js";
import type { Fingerprint } from "../linux/fingerprint.js";
import type { PreparedHeader } from "../runtime/frames.js";
import { hasEnded } from "./has-ended.js";
import type { LiveInstance } from "./instance.js";
import type { Keeper } from "./keeper.js";
import type { HelperResult } from "./keeper-messages.js";
import { extractLive, type LiveStop } from "./live-freeze.js";
import type { parseReply } from "./native.js";
import { FREEZING, type Purpose, prepare } from "./prepare.js";
import type { FreezeOptions, FreezeReport } from "./types.js";
import { untilAccepted } from "./until-accepted.js";

/** First of the files that a helper is given. */
const HELPER_FD = 3;
/** What freezing needs of the engine. */
export interface FreezeTools {
  readonly keeper: Keeper;
  readonly extractor: string;
  readonly fingerprint: Fingerprint;
  /** Where images go when the caller names no directory. */
  readonly imagesDir: string;
}

function refusal(instance: LiveInstance, reply: Readonly<Record<string, unknown>>): ThawError {
  const why = String(reply.why);
  const what = `function "${instance.spec.name}" could not be frozen`;
  if (reply.code === "refused")
    return new ThawError("FREEZE_REFUSED", {
      what,
      why,
      fix: `close it before ${instance.served === 0 ? "loading ends" : "the handler returns"}, or in a before-snapshot hook`,
    });
  if (reply.code === "unsupported")
    return new ThawError("FREEZE_REFUSED", {
      what,
      why,
      fix: "boot Linux 6.7 or newer, or one built with CONFIG_MEM_SOFT_DIRTY; freeze what may stand still while it is copied",
    });
  if (reply.code === "exhausted")
    return new ThawError("RESOURCE_EXHAUSTED", { what, why, fix: "free some space where the server keeps its images (--data)" });
  if (reply.code === "busy") return new ThawError("FREEZE_FAILED", { what, why, fix: "it may pass: try again" });
  return new ThawError("FREEZE_FAILED", { what, why });
}

/** Makes the base's pages the image's own. False where they are gone, or have as many links as can be: then all is stored. */
async function linkBase(path: string, dir: string): Promise<boolean> {
  try {
    await link(path, basePath(dir));
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "EMLINK") return false;
    throw error;
  }
}

/** The generation of the next image of `instance`. */
export function generationOf({ origin }: LiveInstance, { generation }: FreezeOptions): number {
  return generation ?? (origin === undefined ? 0 : origin.generation + 1);
}

/** Hooks without hygiene. */
const LIVE: Purpose = { ...FREEZING, collect: false };

/** What came of the extractor's work, beside what it left in the directory. */
interface Extracted {
  readonly reply: ReturnType<typeof parseReply>;
  /** Of a live freeze. */
  readonly heldMs?: number;
  /** What the runtime told behind its hooks; undefined without hygiene. */
  readonly prepared: PreparedHeader | undefined;
  /** Requests that the instance had answered. */
  readonly served: number;
}

/** Has the extractor copy the process into `temporary`; a live one runs its hooks at the stop. FREEZE_REFUSED and its kin, or how the instance ended. */
async function extract(
  { keeper, extractor }: FreezeTools,
  instance: LiveInstance,
  options: FreezeOptions,
  temporary: string,
  before: PreparedHeader | undefined,
): Promise<Extracted> {
  const { origin, base } = instance;
  const argv = [extractor, "freeze", String(instance.hostPid), temporary, String(CONTROL_FD)];
  if (origin !== undefined) argv.push(`image=${imageFiles(origin.dir).pages}`);
  if (base !== undefined) {
    argv.push(`base=${base.path}`);
    if (await linkBase(base.path, temporary)) argv.push(`layout=${base.layout}`);
  }
  const file = instance.hibernation?.file;
  // What is on disk only is memory too.
  if (file !== undefined) argv.push(`swap=${HELPER_FD}`);
  const files = file === undefined ? [] : [file];
  const run = (...words: readonly string[]): Promise<HelperResult> => keeper.helper([...argv, ...words], { files });
  let { served } = instance;
  let prepared = before;
  const hooks = async (): Promise<void> => {
    ({ served } = instance);
    if (options.hygiene !== false) prepared = await prepare(instance, LIVE);
  };
  const renew = (): void => instance.announceThaw(generationOf(instance, options));
  const once = async (): Promise<LiveStop> =>
    options.live === true ? extractLive(instance, temporary, run, { hooks, renew }) : { ended: await run() };
  const { reply, ...held } = await untilAccepted(once);
  if (!reply.ok && (await hasEnded(instance, reply))) throw instance.exitError();
  if (!reply.ok) throw refusal(instance, reply);
  return { reply, ...held, prepared, served };
}

/** As the extractor writes them: which of the mapped libraries have an allocator that relies on zeros, beside what the image keeps. */
type ExtractedFacts = RawManifest["facts"] & { readonly trustZeros: readonly string[] };

/** Takes what the extractor wrote of the process, with what its runtime told. */
async function takeFacts(temporary: string, { prepared }: Extracted): Promise<RawManifest["facts"]> {
  const path = join(temporary, "facts.json");
  const { trustZeros, ...told } = JSON.parse(await readFile(path, "utf8")) as ExtractedFacts;
  await rm(path);
  const { seeds = [], unusedAllocators = [] } = prepared ?? {};
  return {
    ...told,
    ...allocatorFacts(trustZeros, unusedAllocators, told.notes),
    seeds: seeds.map(([at, bytes]): [string, number] => [hex(at), bytes]),
  };
}

/** What the image says of allocators: one that the runtime knows to be `unused` does no harm. */
function allocatorFacts(trustZeros: readonly string[], unused: readonly string[], notes: readonly string[]) {
  const path = trustZeros.find((each) => !unused.includes(basename(each)));
  if (path === undefined) return {};
  const note = `its allocator (jemalloc, in ${path}) relies on zeros where memory was given back: it is always loaded eagerly`;
  return { trustsZeros: path, notes: [...notes, note] };
}

function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

/** Writes an image of `instance` and returns its directory. The instance goes on in any case. */
export async function freezeInstance(tools: FreezeTools, instance: LiveInstance, options: FreezeOptions): Promise<string> {
  const began = nowMs();
  const live = options.live === true;
  const before = live || options.hygiene === false ? undefined : await prepare(instance);
  if (!live) faultPoint("freeze-prepared");
  const id = randomUUID();
  const dir = options.dir ?? join(tools.imagesDir, id);
  const temporary = temporaryPath(dir);
  try {
    await mkdirs(dirname(temporary), 0o700);
    await mkdir(temporary, { mode: 0o700 });
    const { origin, base } = instance;
    const extracted = await extract(tools, instance, options, temporary, before);
    faultPoint("freeze-extracted");
    const told = await takeFacts(temporary, extracted);
    const { reply, heldMs, prepared, served } = extracted;
    // Between two steps of some milliseconds whoever waits for an answer gets it: the server does all of this beside its requests.
    await nextTurn();
    const read = await parseFacts(told);
    const { databases, notes } = await findDatabases(read, imageFiles(temporary).pages);
    const facts = { ...read, databases, notes: [...read.notes, ...notes] };
    const rawFacts = { ...told, databases: databases.map(({ at, fd }) => ({ at: hex(at), fd })), notes: facts.notes };
    await nextTurn();
    checkFacts(facts);
    const tmp = await describeTmp(temporary);
    const shared = base !== undefined && facts.regions.some(({ kind }) => kind === "base");
    if (!shared) await rm(basePath(temporary), { force: true });
    // Compiled once now, so that what no program can bring back is refused while somebody listens.
    compileThaw(facts, { contents: Buffer.alloc(0), source: "lazy", runtime: true });
    await nextTurn();
    const report: FreezeReport = {
      hygieneMs: prepared?.hygieneMs ?? 0,
      stoppedMs: Number(reply.stoppedUs) / 1000,
      ...(heldMs === undefined ? {} : { heldMs }),
      totalMs: nowMs() - began,
      anonymousBytes: Number(reply.anonymousPages) * PAGE_BYTES,
      storedBytes: Number(reply.storedPages) * PAGE_BYTES,
      copiedAheadBytes: Number(reply.aheadBytes),
      rounds: Number(reply.rounds),
      copiedStoppedBytes: Number(reply.stopBytes),
      notes: facts.notes,
    };
    await writeManifest(temporary, {
      id,
      createdMs: Date.now(),
      generation: generationOf(instance, options),
      heat: (origin?.heat ?? 0) + served,
      ...(prepared?.heat === undefined ? {} : { code: prepared.heat }),
      spec: instance.spec,
      lineagePids: [...instance.lineagePids],
      fingerprint: tools.fingerprint,
      report: { ...report, notes: [...report.notes] },
      ...(shared ? { base: { id: base.id, digest: base.digest, bytes: base.bytes } } : {}),
      ...tmp,
      facts: rawFacts,
    });
    faultPoint("freeze-image-written");
    await fsyncTree(temporary);
    faultPoint("freeze-image-synced");
    await renameDurably(temporary, dir);
    return dir;
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOSPC" || code === "EDQUOT")
      throw refusal(instance, { code: "exhausted", why: "no space left on the device" });
    throw error;
  }
}
