/**
 * Base images: the bare runtime, frozen once before any function was loaded. An image is made by thawing its runtime's base, loading the
 * function into the clone and freezing that; it stores only what differs from the base (SEUSS, EuroSys'20, §4: snapshot
 * stacks; native/delta.c). docs/design/base-images.md has the whole story.
 *
 *     bases/<machine key>-<flags key>.<random>/pages ◀── hard link ── images/<name>.<random>/base
 *
 * The link is the count of references: an image needs nothing from `bases`, and the pages go with the last link to them.
 */
import { createHash, randomBytes } from "node:crypto";
import { statSync } from "node:fs";
import { chmod, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { monotonicNs } from "../base/clock.js";
import { isThawError } from "../base/errors.js";
import { mkdirs, removeTemporaries } from "../base/fsync.js";
import type { Logger } from "../base/log.js";
import { imageFiles } from "../image/index.js";
import type { Fingerprint } from "../linux/fingerprint.js";
import { launch } from "../runtime/launch.js";
import { bootBegins, ready } from "./boot.js";
import type { Husk } from "./husk.js";
import { LoadedImage } from "./images.js";
import type { LiveInstance } from "./instance.js";
import type { Keeper } from "./keeper.js";
import { usBetween } from "./parts.js";
import { runStage } from "./stages.js";
import { interpreterOf, type Template } from "./templates.js";
import type { FunctionSpec, StartResult } from "./types.js";

/** ext4 allows 65,000 links to a file. */
const LINKS_MAX = 60_000;
const RETRY_MS = 60_000;
/**
 * Variables that something reads when the process begins, or when a library is loaded: setting them later is too late. (NODE_ENV is
 * only read by people's own code.)
 */
const READ_AT_EXEC =
  /^(NODE_(?!ENV$)|PYTHON|LD_|MALLOC_|GLIBC_|GCONV_|LOCPATH|NLSPATH|TZ|LANG|LC_|UV_|ICU_|OPENSSL_|SSL_|V8_|OMP_|OPENBLAS_|MKL_)/;

/** Whether a function can be loaded into a clone of a base: nothing in its environment must have been there when the process began. */
export function suitsBase(env: Readonly<Record<string, string>>): boolean {
  return !Object.keys(env).some((name) => READ_AT_EXEC.test(name));
}

/** What is the same for all bases of a runtime on this machine; a base made for another is stale. */
export function machineKey(template: Template, fingerprint: Fingerprint): string {
  const { id, path, version } = template.interpreter;
  return digest([id, path, version, fingerprint.kernel, fingerprint.cpu, fingerprint.runtime]);
}

/** What a process of this function is executed with, whatever else it is told later. */
export function flagsKey(spec: FunctionSpec, template: Template): string {
  const { argv, env } = launchBase(spec, template);
  const fixed = Object.entries(env).filter(([name]) => !name.startsWith("AWS_"));
  return digest([argv, fixed.sort()]);
}

function launchBase(spec: FunctionSpec, template: Template): ReturnType<typeof launch> {
  return launch({ ...baseSpec(spec, "", ""), ...interpreterOf(template), base: true });
}

function baseSpec(spec: FunctionSpec, key: string, codeDir: string): FunctionSpec {
  return { ...spec, name: `base of ${spec.runtime}`, version: key, codeDir, handler: "", env: {} };
}

function digest(value: unknown): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex").slice(0, 16);
}

/** What bases need of the engine. */
export interface BaseTools {
  readonly keeper: Keeper;
  readonly extractor: string;
  /** The server's data. */
  readonly dataDir: string;
  /** False: every image is made from a boot. */
  readonly enabled: boolean;
  readonly fingerprint: Fingerprint;
  readonly log: Logger;
  /** Boots the bare runtime. */
  readonly boot: (spec: FunctionSpec) => Promise<LiveInstance>;
  /** Writes an image of it. */
  readonly freeze: (instance: LiveInstance, dir: string) => Promise<string>;
  readonly husk: (template: Template, avoid: ReadonlySet<number>, tmpMb: number) => Promise<{ husk: Husk; pooled: boolean }>;
  /** An instance of its own in `husk`, within the function's limits. */
  readonly adopt: (husk: Husk, spec: FunctionSpec, start: StartResult) => LiveInstance;
}

/** See above. */
export class Bases {
  readonly #tools: BaseTools;
  readonly #dir: string;
  readonly #emptyDir: string;
  readonly #open = new Map<string, LoadedImage>();
  readonly #making = new Map<string, Promise<LoadedImage | undefined>>();
  readonly #failedAtMs = new Map<string, number>();

  constructor(tools: BaseTools) {
    this.#tools = tools;
    this.#dir = join(tools.dataDir, "bases");
    this.#emptyDir = join(this.#dir, "empty");
  }

  /**
   * Loads a function into a clone of its runtime's base. Undefined where it must be booted: its environment does not allow it, or
   * there is no base and none can be made (which is logged). INIT_FAILED as a boot.
   */
  async start(spec: FunctionSpec, template: Template, signal?: AbortSignal): Promise<LiveInstance | undefined> {
    if (!this.#tools.enabled || !suitsBase(spec.env)) return undefined;
    const machine = machineKey(template, this.#tools.fingerprint);
    const key = `${machine}-${flagsKey(spec, template)}`;
    const base = await this.#get(key, machine, spec);
    if (base === undefined) return undefined;
    try {
      await base.verify();
      return await this.#load(base, spec, template, signal);
    } catch (error) {
      if (isThawError(error, "INIT_FAILED") || isThawError(error, "RESOURCE_EXHAUSTED")) throw error;
      this.#tools.log.warn({ err: error, base: base.image.dir }, "the base image cannot be used; it is made anew");
      await this.#drop(key, base);
      return undefined;
    }
  }

  /** Throws `error`, which an image met that shares the base `id`; a base whose pages are damaged is forgotten first. */
  async found(error: unknown, id: string | undefined): Promise<never> {
    const damaged = isThawError(error, "IMAGE_DAMAGED") && id !== undefined && error.message.includes(id);
    if (damaged) for (const [key, base] of this.#open) if (base.image.id === id) await this.#drop(key, base);
    throw error;
  }

  async #load(base: LoadedImage, spec: FunctionSpec, template: Template, signal: AbortSignal | undefined): Promise<LiveInstance> {
    const { keeper, fingerprint } = this.#tools;
    const began = monotonicNs();
    const { husk, pooled } = await this.#tools.husk(template, base.avoidPids, spec.tmpMb);
    const start = bootBegins(pooled);
    const instance = this.#tools.adopt(husk, spec, start);
    let task: number | undefined;
    try {
      task = await keeper.openTask(spec);
      instance.base = base.asBase();
      instance.lineagePids = [...base.lineagePids, husk.pid];
      const loaded = ready(instance, signal);
      loaded.catch(() => undefined);
      const time = base.timeStep(fingerprint);
      if (time !== undefined) await runStage(keeper, husk, time);
      await runStage(keeper, husk, base.thawStep("lazy", true, undefined, undefined, task));
      const thawn = monotonicNs();
      instance.tellLoad(launch({ ...spec, ...interpreterOf(template) }).env);
      await loaded;
      instance.start = {
        ...start,
        us: usBetween(began, monotonicNs()),
        phases: [
          { name: "base", us: usBetween(began, thawn) },
          { name: "load", us: usBetween(thawn, monotonicNs()) },
        ],
      };
      return instance;
    } catch (error) {
      await instance.dispose();
      throw error;
    } finally {
      if (task !== undefined) keeper.closeFile(task);
    }
  }

  #get(key: string, machine: string, spec: FunctionSpec): Promise<LoadedImage | undefined> {
    const open = this.#open.get(key);
    if (open !== undefined && linksOf(open) < LINKS_MAX) return Promise.resolve(open);
    if (Date.now() - (this.#failedAtMs.get(key) ?? 0) < RETRY_MS) return Promise.resolve(undefined);
    let making = this.#making.get(key);
    if (making === undefined) {
      making = this.#find(key, machine, spec).finally(() => this.#making.delete(key));
      this.#making.set(key, making);
    }
    return making;
  }

  async #find(key: string, machine: string, spec: FunctionSpec): Promise<LoadedImage | undefined> {
    const { log, keeper, extractor, fingerprint } = this.#tools;
    const full = this.#open.get(key);
    if (full !== undefined) await this.#drop(key, full);
    try {
      await mkdirs(this.#dir, 0o700);
      // /var/task of a base: functions, which run as other users, must be able to look at it.
      await mkdirs(this.#emptyDir);
      await chmod(this.#emptyDir, 0o755);
      for (const name of await readdir(this.#dir)) {
        if (!name.startsWith(`${key}.`)) continue;
        try {
          const found = await LoadedImage.open(keeper, extractor, join(this.#dir, name), fingerprint, false, { isBase: true });
          if (linksOf(found) < LINKS_MAX) {
            this.#open.set(key, found);
            return found;
          }
          found.close();
        } catch (error) {
          log.warn({ err: error, base: name }, "the base image cannot be used; it is made anew");
        }
        await rm(join(this.#dir, name), { recursive: true, force: true });
      }
      return await this.#make(key, machine, spec);
    } catch (error) {
      this.#failedAtMs.set(key, Date.now());
      log.warn({ err: error, runtime: spec.runtime }, "no base image could be made; images of this runtime are made from boots");
      return undefined;
    }
  }

  async #make(key: string, machine: string, spec: FunctionSpec): Promise<LoadedImage> {
    const { keeper, extractor, fingerprint } = this.#tools;
    await this.#sweep(spec.runtime, machine);
    const instance = await this.#tools.boot(baseSpec(spec, key, this.#emptyDir));
    try {
      const dir = await this.#tools.freeze(instance, join(this.#dir, `${key}.${randomBytes(4).toString("hex")}`));
      const base = await LoadedImage.open(keeper, extractor, dir, fingerprint, true, { isBase: true });
      this.#open.set(key, base);
      return base;
    } finally {
      await instance.dispose();
    }
  }

  /** Removes bases of this runtime that were made for another kernel, interpreter or thaw; images made from them keep their link. */
  async #sweep(runtime: string, machine: string): Promise<void> {
    await removeTemporaries(this.#dir);
    for (const name of await readdir(this.#dir)) {
      if (name === "empty" || name.startsWith(`${machine}-`)) continue;
      const dir = join(this.#dir, name);
      try {
        const other = await LoadedImage.runtimeOf(dir);
        if (other !== runtime) continue;
      } catch (error) {
        if (!isThawError(error)) throw error;
      }
      await rm(dir, { recursive: true, force: true });
    }
  }

  async #drop(key: string, base: LoadedImage): Promise<void> {
    if (this.#open.get(key) !== base) return;
    this.#open.delete(key);
    base.close();
    await rm(base.image.dir, { recursive: true, force: true });
  }
}

function linksOf(base: LoadedImage): number {
  return statSync(imageFiles(base.image.dir).pages, { throwIfNoEntry: false })?.nlink ?? LINKS_MAX;
}
