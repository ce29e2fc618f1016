/**
 * The keeper's client: speaks its protocol (docs/design/keeper.md), hands events to the instances that they belong to. It decides
 * nothing and knows no function.
 *
 * What is sent within one turn of the event loop becomes one write. What arrives is cut out of the chunk that
 * the socket read, without copying, unless a message spans chunks. Answers find their request by a tag that the keeper
 * returns in `reserved`.
 */
import { constants } from "node:os";
import { sleep } from "../base/clock.js";
import { isThawError, ThawError } from "../base/errors.js";
import { ABI_CONSTANTS as ABI, structBytes } from "../linux/abi.js";
import type { CgroupParents, LimitWrite } from "../linux/cgroups.js";
import { encodePlan, encodeStrings, type RootOperation } from "../linux/rootfs.js";
import { FrameReader, type KeeperMessage } from "./keeper-frames.js";
import {
  allPrefetched,
  decodeExit,
  decodePaged,
  decodePrefetched,
  decodeReady,
  decodeReport,
  decodeStatus,
  encodeHusk,
  encodeLimits,
  encodePagedBy,
  encodePrefetch,
  encodeStage,
  type HelperResult,
  type HuskReady,
  type HuskReport,
  type HuskRequest,
  type InstanceListener,
  type PagedBy,
  type Prefetched,
  type PrefetchRange,
  type StageRequest,
} from "./keeper-messages.js";
import { KeeperProcess, type ProcessOptions } from "./keeper-process.js";
import { promised, type Told } from "./parts.js";

/** How a keeper is started, and who hears of it. */
export interface KeeperOptions extends ProcessOptions {
  /** Called once when the keeper ends without having been asked to. */
  readonly onLost?: (error: ThawError) => void;
}

interface Pending {
  readonly what: string;
  readonly type: number;
  readonly instance: number;
  readonly told: Told<KeeperMessage>;
}

/** Requests that an instance which is over answers no more. */
const ENDS_WITH_INSTANCE: readonly number[] = [ABI.MSG_HUSK, ABI.MSG_STAGE, ABI.MSG_SEND, ABI.MSG_TRACE];
const HEAD_BYTES = structBytes("message");
const JOIN_BYTES_MAX = 16 * 1024;
const START_MS_MAX = 10_000;
/** Usual are 20 microseconds, some milliseconds for gigabytes of it. */
const LOCKED_MS_MAX = 1_000;

/** One keeper process. */
export class Keeper {
  readonly #process: KeeperProcess;
  readonly #options: KeeperOptions;
  readonly #pending = new Map<number, Pending>();
  readonly #listeners = new Map<number, InstanceListener>();
  readonly #memories = new Map<number, Promise<string>>();
  /** Processes whose memory the keeper waits for longer than that. */
  readonly #late = new Set<number>();
  #outgoing: Buffer[] = [];
  #nextTag = 1;
  #nextInstance = 1;
  #nextFile = 1;
  #nextTemplate = 1;
  #closing = false;
  #lost: ThawError | undefined;
  #hello: ((pid: number) => void) | undefined;
  #pid = 0;

  private constructor(options: KeeperOptions) {
    this.#options = options;
    const reader = new FrameReader((message) => this.#receive(message));
    this.#process = new KeeperProcess(
      options,
      (chunk) => reader.push(chunk),
      (why, cause) => this.#fail(why, cause),
    );
  }

  /** Starts a keeper and waits for its greeting. KEEPER_FAILED, NATIVE_MISSING. */
  static async start(options: KeeperOptions): Promise<Keeper> {
    const keeper = new Keeper(options);
    let timer: NodeJS.Timeout | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        timer = setTimeout(() => reject(keeper.#process.error(`it did not greet within ${START_MS_MAX} ms`)), START_MS_MAX);
        keeper.#hello = (pid) => {
          keeper.#pid = pid;
          resolve();
        };
        void keeper.#process.ended.then(() => reject(keeper.#lost ?? keeper.#process.error("it ended")));
      });
    } catch (error) {
      keeper.#closing = true;
      keeper.#process.kill();
      throw error;
    } finally {
      clearTimeout(timer);
    }
    return keeper;
  }

  get pid(): number {
    return this.#pid;
  }

  /** Whether it ended, which was told: what fails because of that need not be. */
  get lost(): boolean {
    return this.#lost !== undefined;
  }

  /** Builds a root file system; the id names it in {@link HuskRequest}. */
  async template(plan: readonly RootOperation[]): Promise<number> {
    const id = this.#nextTemplate++;
    await this.#ask("root file system", ABI.MSG_TEMPLATE, id, [encodePlan(plan)]);
    return id;
  }

  async cgroups(parents: CgroupParents): Promise<void> {
    const strings: string[] = [parents.layout.version, ...Object.entries(parents.dirs).flat()];
    await this.#ask("cgroups", ABI.MSG_CGROUPS, 0, [encodeStrings(strings)]);
  }

  /** Opens a file for reading, or a directory to clone as a tree. */
  async openFile(path: string, kind: "read" | "path" = "read"): Promise<number> {
    return await this.#open(kind === "read" ? ABI.FILE_READ : ABI.FILE_PATH, [path]);
  }

  /** Opens what a process has mapped at `addresses` (of /proc/PID/maps), if that is still the file with these numbers (device and inode, from there). */
  async openMapped(pid: number, addresses: string, file: string): Promise<number> {
    const open = (): Promise<number> => this.#open(ABI.FILE_MAPPED, [`/proc/${pid}/map_files/${addresses}`, file]);
    return await this.#locked(pid, open, (id) => this.closeFile(id));
  }

  /** What `/proc/PID/smaps_rollup` says of a process; who asks while another does gets the same answer. */
  memory(pid: number): Promise<string> {
    const asked = this.#memories.get(pid);
    if (asked !== undefined) return asked;
    const payload = Buffer.alloc(4);
    payload.writeUInt32LE(pid);
    const told = this.#locked(pid, () => this.#ask("memory", ABI.MSG_MEMORY, 0, [payload]))
      .then((message) => message.payload.toString("latin1"))
      .finally(() => this.#memories.delete(pid));
    this.#memories.set(pid, told);
    return told;
  }

  /** Opens the folder with a function's code, so that it can be mounted. CODE_INVALID names one that is not there. */
  async openTask({ name, codeDir }: { readonly name: string; readonly codeDir: string }): Promise<number> {
    try {
      return await this.openFile(codeDir, "path");
    } catch (error) {
      if (!isThawError(error, "KEEPER_FAILED") || error.details.errno === undefined) throw error;
      throw new ThawError("CODE_INVALID", {
        what: `The code of function "${name}" cannot be opened`,
        why: error.why ?? "",
        fix: "Check that codeDir is the folder that holds it; deploy the function again if a server made that folder",
        cause: error,
      });
    }
  }

  /** Makes a file without a name in `dir`, mode 0600, that is gone once it is closed here and mapped nowhere. */
  async tempFile(dir: string): Promise<number> {
    const id = this.#nextFile++;
    await this.#ask(dir, ABI.MSG_FILE_TEMP, id, [encodeStrings([dir])]);
    return id;
  }

  /** Hands over the bytes of a program. Usable at once: messages keep their order. `bytes` must not change before the next turn. */
  fileBytes(bytes: Buffer): number {
    const id = this.#nextFile++;
    this.#send(ABI.MSG_FILE_BYTES, id, 0, [bytes]);
    return id;
  }

  closeFile(id: number): void {
    this.#send(ABI.MSG_FILE_CLOSE, id, 0, []);
  }

  /** Makes an empty sandboxed process. When `ready` rejects, there is no instance and no `onExit`, unless it was killed meanwhile. */
  husk(request: HuskRequest, listener: InstanceListener): { readonly id: number; readonly ready: Promise<HuskReady> } {
    const id = this.#nextInstance++;
    this.#listeners.set(id, listener);
    const ready = this.#ask("sandbox", ABI.MSG_HUSK, id, [encodeHusk(request)]).then(
      ({ payload }) => decodeReady(payload),
      (error: unknown) => {
        this.#listeners.delete(id);
        throw error;
      },
    );
    return { id, ready };
  }

  /** Runs a program in a husk. Told, in the turn in which it comes: the husk's report, whatever its status. */
  beginStage(instance: number, request: StageRequest, told: Told<HuskReport>): void {
    this.#request("stage", ABI.MSG_STAGE, instance, [encodeStage(request)], (error, message) =>
      message === undefined ? told(error) : told(undefined, decodeReport(message.payload)),
    );
  }

  /** Writes to the function's control socket. The buffers must not change before the next turn. */
  send(instance: number, ...parts: readonly Buffer[]): void {
    this.#send(ABI.MSG_SEND, instance, 0, parts);
  }

  /** The same; told once it lies there, an error when nobody is left to read it. */
  beginDelivery(instance: number, parts: readonly Buffer[], told: Told<void>): void {
    this.#request("request", ABI.MSG_SEND, instance, parts, (error) => told(error));
  }

  /** Failures reach the listener's `onFailure`. */
  limits(instance: number, writes: readonly LimitWrite[]): void {
    this.#send(ABI.MSG_LIMITS, instance, 0, [encodeLimits(writes)]);
  }

  /** Ends every process of the sandbox; `onExit` follows. */
  kill(instance: number): void {
    if (this.#listeners.has(instance)) this.#send(ABI.MSG_KILL, instance, 0, []);
  }

  /** Lets go of the userfaultfd that an instance's husk made and gave, if there is one. Resolves when nothing of the memory of `pid`, which is its process, is registered. */
  async closeUffd(instance: number, pid: number): Promise<void> {
    const closed = this.#ask("userfaultfd", ABI.MSG_UFFD_CLOSE, instance, []);
    closed.catch(() => undefined);
    await this.#locked(pid, () => closed);
  }

  /** The pager will fill the memory that this instance's husk gives to it. Before the stage that gives it; `onPaged` follows. */
  pagedBy(instance: number, by: PagedBy): void {
    this.#send(ABI.MSG_PAGED_BY, instance, 0, [encodePagedBy(by)]);
  }

  /** Pages that the pager brought to an instance one by one, in order: addresses, the lowest bit set where it was written. */
  async trace(instance: number): Promise<Buffer> {
    return (await this.#ask("trace", ABI.MSG_TRACE, instance, [])).payload;
  }

  /**
   * Has the pager start reading these parts of files into the page cache, in this order. Cheap when they are there already. Nothing need
   * wait for it, and it never rejects: a page that is not there yet is read by whoever faults on it.
   */
  prefetch(ranges: readonly PrefetchRange[]): Promise<Prefetched> {
    return this.prefetchEncoded(encodePrefetch(ranges));
  }

  /**
   * The same, for ranges that are asked for again and again. `ahead`: of an instance that will need it: nothing is read where all
   * seems to be in the page cache; else nothing is sent to that instance until the disk was asked. `awaited`: the answer comes at once, and not with the next message of any kind
   */
  async prefetchEncoded(
    payloads: readonly Buffer[],
    { ahead = 0, awaited = false }: { readonly ahead?: number; readonly awaited?: boolean } = {},
  ): Promise<Prefetched> {
    const parts = payloads.map((payload) =>
      this.#ask("prefetch", ABI.MSG_PREFETCH, ahead, [payload], awaited ? ABI.PREFETCH_AWAITED : 0).then(
        ({ payload: answer }) => decodePrefetched(answer),
        (): Prefetched => ({ us: 0, pages: -1 }),
      ),
    );
    return allPrefetched(await Promise.all(parts));
  }

  /**
   * Runs a program as root outside any sandbox, to its end. `files` become its descriptors from 3 on. `cancel` sends it SIGTERM, be it
   * running or still to be started.
   */
  async helper(
    argv: readonly string[],
    options: { files?: readonly number[]; cancel?: AbortSignal } = {},
  ): Promise<HelperResult> {
    const { files = [], cancel } = options;
    const ids = Buffer.alloc(files.length * 4);
    for (const [index, id] of files.entries()) ids.writeUInt32LE(id, index * 4);
    const tag = this.#nextTag;
    const ended = this.#ask(argv[0] ?? "helper", ABI.MSG_HELPER, 0, [ids, encodeStrings(argv)], files.length);
    const onCancel = (): void => this.#send(ABI.MSG_HELPER_TERM, tag, 0, []);
    if (cancel?.aborted === true) onCancel();
    cancel?.addEventListener("abort", onCancel, { once: true });
    const { payload } = await ended.finally(() => cancel?.removeEventListener("abort", onCancel));
    return { ...decodeStatus(payload.readUInt32LE(0)), stdout: payload.subarray(4) };
  }

  /** Ends everything in order: sandboxes, cgroups, keeper. Idempotent. */
  async close(): Promise<void> {
    this.#closing = true;
    this.flush();
    await this.#process.end();
  }

  async #open(kind: number, [path, ...more]: readonly [string, ...string[]]): Promise<number> {
    const id = this.#nextFile++;
    const head = Buffer.alloc(4);
    head.writeUInt32LE(kind);
    await this.#ask(path, ABI.MSG_FILE_OPEN, id, [head, encodeStrings([path, ...more])]);
    return id;
  }

  /**
   * For what needs the kernel's lock of a process's memory: who has many threads, and leaves the one that has it no processor, keeps that. A thread of the keeper
   * waits then, so no more is asked about that process until it came. `late` gets what comes when nobody waits.
   */
  async #locked<T>(pid: number, ask: () => Promise<T>, late?: (value: T) => void): Promise<T> {
    if (this.#late.has(pid)) throw memoryLocked();
    const asked = ask();
    const waiting = new AbortController();
    const tooLate = sleep(LOCKED_MS_MAX, waiting.signal).then(
      () => {
        this.#late.add(pid);
        asked.then(late, () => undefined).finally(() => this.#late.delete(pid));
        throw memoryLocked();
      },
      () => asked,
    );
    return Promise.race([asked, tooLate]).finally(() => waiting.abort());
  }

  #ask(what: string, type: number, id: number, parts: readonly Buffer[], flags = 0): Promise<KeeperMessage> {
    return promised((told) => this.#request(what, type, id, parts, told, flags));
  }

  #request(what: string, type: number, id: number, parts: readonly Buffer[], told: Told<KeeperMessage>, flags = 0): void {
    // The keeper has forgotten an instance that ended, and would say nothing: its end may be read together with the answer that the caller goes on from.
    const gone = ENDS_WITH_INSTANCE.includes(type) && !this.#listeners.has(id) ? sandboxEnded(what) : undefined;
    const why = this.#lost ?? gone;
    if (why !== undefined) {
      queueMicrotask(() => told(why));
      return;
    }
    const tag = this.#nextTag;
    this.#nextTag = tag === 0xffff_ffff ? 1 : tag + 1;
    this.#pending.set(tag, { what, type, instance: id, told });
    this.#send(type, id, tag, parts, flags);
  }

  #send(type: number, id: number, tag: number, parts: readonly Buffer[], flags = 0): void {
    if (this.#lost !== undefined || this.#process.socket.destroyed) return;
    const head = Buffer.allocUnsafe(HEAD_BYTES);
    let bytes = 0;
    for (const part of parts) bytes += part.length;
    head.writeUInt32LE(bytes, 0);
    head.writeUInt16LE(type, 4);
    head.writeUInt16LE(flags, 6);
    head.writeUInt32LE(id, 8);
    head.writeUInt32LE(tag, 12);
    if (this.#outgoing.length === 0) queueMicrotask(() => this.flush());
    this.#outgoing.push(head, ...parts);
  }

  /** What was asked for in this turn goes out now, and not at its end: for what others can work on meanwhile. */
  flush(): void {
    const parts = this.#outgoing;
    if (parts.length === 0) return;
    this.#outgoing = [];
    let bytes = 0;
    for (const part of parts) bytes += part.length;
    const { socket } = this.#process;
    if (bytes <= JOIN_BYTES_MAX) {
      socket.write(Buffer.concat(parts, bytes));
      return;
    }
    socket.cork();
    for (const part of parts) if (part.length > 0) socket.write(part);
    socket.uncork();
  }

  #receive(message: KeeperMessage): void {
    const { type, id, flags, payload } = message;
    switch (type) {
      case ABI.MSG_DATA:
        if (payload.length > 0) this.#listeners.get(id)?.onData(payload);
        else this.#listeners.get(id)?.onControlEnd?.();
        return;
      case ABI.MSG_LOG:
        this.#listeners.get(id)?.onLog(payload);
        return;
      case ABI.MSG_PAGED:
        this.#listeners.get(id)?.onPaged?.(decodePaged(payload));
        return;
      case ABI.MSG_EXIT:
        this.#exited(id, payload, flags);
        return;
      case ABI.MSG_HELLO:
        this.#greeted(payload);
        return;
      case ABI.MSG_FAILED:
        this.#refused(message);
        return;
      default:
        this.#take(message.tag)?.told(undefined, message);
    }
  }

  #take(tag: number): Pending | undefined {
    const pending = this.#pending.get(tag);
    this.#pending.delete(tag);
    return pending;
  }

  #greeted(payload: Buffer): void {
    const version = payload.readUInt32LE(4);
    if (version === ABI.HUSK_VERSION) this.#hello?.(payload.readUInt32LE(0));
    else this.#fail(`it was built for husk version ${version}, this server for ${ABI.HUSK_VERSION}; run \`npm run build\``);
  }

  #refused({ id, tag, flags, payload }: KeeperMessage): void {
    const text = payload.toString("utf8", 4);
    const pending = this.#take(tag);
    const error =
      flags === ABI.MSG_PAGED_BY
        ? pagerLost(id, payload)
        : new ThawError(flags === ABI.MSG_HUSK ? "SANDBOX_FAILED" : "KEEPER_FAILED", {
            what:
              pending === undefined
                ? `The keeper refused a request for instance ${id}`
                : `The keeper could not do what was asked (${pending.what})`,
            why: text,
            details: { errno: payload.readInt32LE(0) },
          });
    if (pending !== undefined) pending.told(error);
    else this.#listeners.get(id)?.onFailure?.(error);
  }

  #exited(id: number, payload: Buffer, flags: number): void {
    const listener = this.#listeners.get(id);
    this.#listeners.delete(id);
    for (const [tag, pending] of this.#pending) {
      if (pending.instance !== id || !ENDS_WITH_INSTANCE.includes(pending.type)) continue;
      this.#pending.delete(tag);
      pending.told(sandboxEnded(pending.what));
    }
    listener?.onExit(decodeExit(payload, flags));
  }

  #fail(why: string, cause?: unknown): void {
    if (this.#lost !== undefined) return;
    this.#lost = this.#process.error(why, cause);
    const unanswered = [...this.#pending.values()];
    this.#pending.clear();
    for (const { told } of unanswered) told(this.#lost);
    const listeners = [...this.#listeners.values()];
    this.#listeners.clear();
    for (const listener of listeners) {
      // Not the function's doing: who waits for its answer is told so.
      if (!this.#closing) listener.onFailure?.(this.#lost);
      listener.onExit({ code: undefined, signal: 9, oomKills: 0, maxRssKb: 0, peakBytes: 0, sends: 0 });
    }
    this.#process.socket.destroy();
    if (!this.#closing) this.#options.onLost?.(this.#lost);
  }
}

function memoryLocked(): ThawError {
  return new ThawError("KEEPER_FAILED", {
    what: "The keeper could not look at a function's memory",
    why: `the function did not let go of it for ${LOCKED_MS_MAX} ms`,
    details: { errno: constants.errno.ETIMEDOUT },
  });
}

function sandboxEnded(what: string): ThawError {
  return new ThawError("SANDBOX_FAILED", { what: `The sandbox ended before its ${what} was done` });
}

/** Its memory is incomplete, and nobody can complete it. */
function pagerLost(instance: number, payload: Buffer): ThawError {
  return new ThawError("PAGER_LOST", {
    what: `instance ${instance} was ended: the rest of its memory cannot be brought`,
    why: payload.toString("utf8", 4),
    fix: "send the request again: it gets a new instance",
    details: { errno: payload.readInt32LE(0) },
  });
}
