/**
 * The registry: which functions there are, and the order of steps in which they come and go.
 *
 *     deploy: check ─▶ unpack (temporary) ─▶ flush ─▶ rename ─▶ commit ─▶ flush ─▶ acknowledged ─▶ image, in the background; replaced code goes
 *     remove: commit ─▶ flush ─▶ drain ─▶ instances ─▶ image ─▶ code, logs ─▶ acknowledged
 *
 * The commit is the moment that counts: from then on the function is what the database says. Whatever a crash leaves on either side of it is swept by the next
 * start, and nothing is removed that a commit needs which the disk may still lack. Deploying and removing one name happen one after the other; different names do
 * not wait for each other.
 */
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { ThawError } from "../base/errors.js";
import { faultPoint } from "../base/fault.js";
import { removeTree } from "../base/fsync.js";
import type { Logger } from "../base/log.js";
import { Places } from "../base/places.js";
import type { Engine, FunctionSpec } from "../engine/types.js";
import { type StagedCode, stageCode } from "./code.js";
import { checkConfig } from "./config.js";
import { findEntry } from "./handler.js";
import type { HeatPolicy } from "./heat-policy.js";
import type { Heating } from "./heating.js";
import type { Images } from "./images.js";
import type { Instances } from "./instances.js";
import { recall } from "./learned.js";
import type { Learning } from "./learning.js";
import { FunctionLog } from "./logs.js";
import { CounterSet } from "./metrics.js";
import { serverStops } from "./stopping.js";
import type { Store, StoredFunction, StoredVersion } from "./store.js";
import { type DataLayout, removeIfEmpty } from "./sweep.js";
import { type DeployRequest, LATEST } from "./types.js";
import type { Uploads } from "./uploads.js";
import { Version } from "./version.js";

export interface FunctionsOptions {
  readonly engine: Engine;
  readonly store: Store;
  readonly images: Images;
  readonly heating: Heating;
  readonly learning: Learning;
  readonly heatPolicy: HeatPolicy;
  readonly instances: Instances;
  readonly layout: DataLayout;
  readonly uploads: Uploads;
  readonly counters: CounterSet;
  readonly drainMs: number;
  readonly log: Logger;
}

/** See above. */
export class Functions {
  readonly #options: FunctionsOptions;
  readonly #byName = new Map<string, Version>();
  /** The last deploy or removal of each name that is under way. */
  readonly #turns = new Map<string, Promise<unknown>>();
  /** Versions that were replaced and still have instances or files. `ended`: no instance and no image is left; it never rejects. */
  readonly #replaced = new Map<Version, { readonly ended: Promise<unknown>; readonly gone: Promise<void> }>();

  /** One package has threads and disk busy; of two, one may wait for the disk. */
  readonly #unpacking = new Places(2);
  #stopping = false;

  constructor(options: FunctionsOptions) {
    this.#options = options;
  }

  /** Takes over what a former server stored. */
  resume(stored: StoredFunction): void {
    const version = this.#version(stored.version);
    this.#byName.set(version.name, version);
    recall(version, stored.learned, this.#options.log);
    this.#options.images.resume(version, stored);
  }

  /** The version that requests get. FUNCTION_NOT_FOUND. */
  find(name: string, qualifier?: string): Version {
    const version = this.#byName.get(name);
    if (version === undefined) {
      throw new ThawError("FUNCTION_NOT_FOUND", {
        what: `There is no function "${name}"`,
        why: this.#byName.size === 0 ? "no function has been deployed" : "none of that name has been deployed",
        fix: "See `thaw ls` for those that exist, or deploy it with `thaw deploy`",
      });
    }
    if (qualifier !== undefined && qualifier !== LATEST) {
      throw new ThawError("FUNCTION_NOT_FOUND", {
        what: `Function "${name}" has no version or alias "${qualifier}"`,
        why: `only ${LATEST} exists`,
        fix: `Leave the qualifier out, or use ${LATEST}`,
      });
    }
    return version;
  }

  has(name: string): boolean {
    return this.#byName.has(name);
  }

  /** All, in no order. */
  versions(): Iterable<Version> {
    return this.#byName.values();
  }

  /** All, sorted by name. */
  all(): Version[] {
    return [...this.#byName.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** Throws what {@link deploy} would for all but the package. */
  checkDeploy(request: Omit<DeployRequest, "zip">): void {
    checkConfig(request);
    this.#refuseTwin(request);
  }

  async deploy(request: DeployRequest): Promise<Version> {
    const config = checkConfig(request);
    this.#refuseTwin(request);
    return this.#inTurn(config.name, async () => {
      this.#refuseWhenStopping(config.name);
      this.#refuseTwin(request);
      const { engine, store, layout, images, uploads } = this.#options;
      const before = this.#byName.get(config.name);
      const { zip: given } = request;
      const zip = given instanceof Uint8Array ? await uploads.receive([given]) : given;
      const codeDir = join(layout.functions, config.name, zip.hash.hex);
      const { name, runtime, handler, ...rest } = config;
      let staged: StagedCode | undefined;
      let stored: StoredVersion;
      try {
        staged = await this.#unpacking.take(async () => {
          this.#refuseWhenStopping(name);
          return stageCode(zip, codeDir);
        });
        const runtimes = engine.runtimes.map((known) => known.id);
        const entry = await findEntry(staged.dir, staged.files, { runtime, handler }, runtimes);
        await staged.publish();
        stored = {
          functionName: name,
          version: LATEST,
          revisionId: randomUUID(),
          modifiedMs: Date.now(),
          config: { ...rest, ...entry },
          codeHex: zip.hash.hex,
          codeBytes: zip.bytes,
        };
        store.put(stored);
      } catch (error) {
        const used = [before, ...this.#replaced.keys()].some((version) => version?.spec.codeDir === codeDir);
        if (!used) await removeTree(codeDir);
        throw error;
      } finally {
        if (zip !== given) await zip.close();
        await staged?.discard();
        if (before === undefined) await removeIfEmpty(join(layout.functions, name));
      }
      const flushed = store.flush();
      const version = this.#version(stored, before);
      this.#byName.set(name, version);
      if (before !== undefined) this.#replace(before, flushed);
      try {
        await flushed;
        faultPoint("deploy-recorded");
      } finally {
        images.begin(version);
      }
      return version;
    });
  }

  async remove(name: string): Promise<void> {
    this.find(name);
    await this.#inTurn(name, async () => {
      const version = this.find(name);
      const { store, instances, layout, drainMs } = this.#options;
      store.remove(name);
      await store.flush();
      faultPoint("remove-recorded");
      this.#byName.delete(name);
      const replaced = [...this.#replaced.keys()].filter((old) => old.name === name);
      await Promise.all([version, ...replaced].map((old) => instances.retire(old, drainMs)));
      await Promise.all([this.#retireImages(version), ...replaced.map((old) => this.#replaced.get(old)?.ended)]);
      await removeTree(join(layout.functions, name));
      await version.log.remove();
    });
  }

  /** Deploys that have not begun to unpack are refused from now on. */
  stop(): void {
    this.#stopping = true;
  }

  /** Waits for deploys and removals under way, then writes the logs out. */
  async close(): Promise<void> {
    await Promise.allSettled([...this.#turns.values(), ...[...this.#replaced.values()].map(({ gone }) => gone)]);
    await Promise.all([...this.#byName.values()].map((version) => version.log.close()));
  }

  /** Ends a version that another one replaced: its requests are answered first, then its image goes, and its code once the disk has the commit: until then a crash brings it back. */
  #replace(before: Version, flushed: Promise<void>): void {
    const { instances, log } = this.#options;
    // Every request ends by its own timeout; the rest is for an instance that is still starting.
    const drainMs = before.stored.config.timeoutMs + this.#options.drainMs;
    const failed = (error: unknown): void =>
      log.error({ err: error, function: before.name }, "a replaced version was not removed completely");
    const ended = instances
      .retire(before, drainMs)
      .then(() => this.#retireImages(before))
      .catch(failed);
    // In turn: what is about to be deployed may be this very code, which is at its place already.
    const gone = Promise.all([ended, flushed])
      .then(() => this.#inTurn(before.name, async () => this.#removeCode(before)))
      .catch(failed)
      .finally(() => this.#replaced.delete(before));
    this.#replaced.set(before, { ended, gone });
  }

  /** What makes images of it ends, and those that it has are gone. */
  async #retireImages(version: Version): Promise<void> {
    const { heating, images, learning } = this.#options;
    await heating.retire(version);
    await learning.settled(version);
    await images.retire(version);
  }

  #removeCode(before: Version): Promise<void> | undefined {
    const { codeDir } = before.spec;
    const others = [this.#byName.get(before.name), ...this.#replaced.keys()];
    if (others.some((other) => other !== before && other?.spec.codeDir === codeDir)) return undefined;
    return removeTree(codeDir);
  }

  #version(stored: StoredVersion, before?: Version): Version {
    const { layout, counters, heatPolicy, log: logger } = this.#options;
    const { config, functionName: name } = stored;
    const spec: FunctionSpec = {
      name,
      version: stored.version,
      runtime: config.runtime,
      codeDir: join(layout.functions, name, stored.codeHex),
      handler: config.handler,
      memoryMb: config.memoryMb,
      timeoutMs: config.timeoutMs,
      env: config.env,
      tmpMb: config.tmpMb,
    };
    const arn = `arn:aws:lambda:us-east-1:000000000000:function:${name}`;
    if (before !== undefined) return new Version(stored, spec, arn, before.log, before.counters, heatPolicy, before.idleTimes);
    const own = new CounterSet(counters);
    const log = new FunctionLog(layout.logs, name, (error, again) => {
      own.add("logWriteFailures");
      // A full disk fails each batch, which the metrics count.
      if (!again) logger.error({ err: error, function: name }, "a function's log could not be written");
    });
    return new Version(stored, spec, arn, log, own, heatPolicy);
  }

  #refuseWhenStopping(name: string): void {
    if (this.#stopping) throw serverStops(`Function "${name}" was not deployed`);
  }

  #refuseTwin(request: Omit<DeployRequest, "zip">): void {
    if (request.update === true || !this.#byName.has(request.name)) return;
    throw new ThawError("FUNCTION_EXISTS", {
      what: `Function "${request.name}" was not deployed`,
      why: "a function of that name exists already",
      fix: "Deploy with --update to replace it, or choose another name",
    });
  }

  #inTurn<T>(name: string, step: () => Promise<T>): Promise<T> {
    const before: Promise<unknown> = this.#turns.get(name) ?? Promise.resolve();
    const turn = before.then(step, step);
    this.#turns.set(name, turn);
    const forget = (): void => {
      if (this.#turns.get(name) === turn) this.#turns.delete(name);
    };
    turn.then(forget, forget);
    return turn;
  }
}
