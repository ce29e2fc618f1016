/**
 * Hibernation of one instance, in place (Hibernate Container, 2023, §3): its private memory goes to a file that has no name, the
 * process and its kernel objects stay (native/deflate.c does the work, docs/design/hibernate.md tells it).
 *
 *   warm ──hibernate──▶ deflating ──▶ hibernated ──request, wake──▶ woken ──hibernate──▶ deflating ──▶ …
 *     ▲                     │ a request came first                    ▲                     │
 *     └─────────────────────┘                                         └─────────────────────┘
 *
 * A request never waits for it: it is handed to the process at once. While the extractor only copies, the process takes it and the
 * extractor ends; while all is stopped to be replaced, that is over within milliseconds.
 */
import { monotonicNs, nowMs } from "../base/clock.js";
import { isThawError, ThawError } from "../base/errors.js";
import { faultPoint } from "../base/fault.js";
import type { Logger } from "../base/log.js";
import { CONTROL_FD } from "../image/index.js";
import type { PreparedHeader } from "../runtime/frames.js";
import { type ProcessFaults, processFaults } from "./faults.js";
import { hasEnded } from "./has-ended.js";
import type { LiveInstance } from "./instance.js";
import type { Keeper } from "./keeper.js";
import { allPrefetched, type HelperResult } from "./keeper-messages.js";
import type { MappedFiles } from "./mapped-files.js";
import { parseReply } from "./native.js";
import { usBetween } from "./parts.js";
import { prepare } from "./prepare.js";
import type { HibernateReport, InstanceState, StartResult } from "./types.js";
import { WakeSet } from "./wake-set.js";
import { WakeWatch } from "./wake-watch.js";

const SIGTERM = 15;
/** By then a request that was to be answered from memory waits for a disk. */
const LATE_MS = 3;

/** What hibernating needs of the engine. */
export interface HibernateTools {
  readonly keeper: Keeper;
  readonly extractor: string;
  /** Where the files without a name are made: the disk of the images. */
  readonly dir: string;
  readonly log: Logger;
  readonly mapped: MappedFiles;
}

type Reply = ReturnType<typeof parseReply>;

/** All hibernations of one instance. See above. */
export class Hibernation {
  state: InstanceState = "warm";
  hibernatedBytes = 0;
  /** The keeper's name for the file; it lives as long as the instance. */
  #file: number | undefined;
  readonly #wakeSet = new WakeSet();
  #watch: WakeWatch | undefined;
  #unwatching = Promise.resolve();
  #wokenNs: bigint | undefined;
  /** Of the process until it was woken; the answer to the first request after its wake tells how many that took. */
  #faultsBefore: ProcessFaults | undefined;
  #report: HibernateReport | undefined;
  #work: Promise<HibernateReport> | undefined;
  #cancel = new AbortController();
  #closed = false;

  constructor(
    private readonly tools: HibernateTools,
    private readonly instance: LiveInstance,
  ) {}

  /** The file that holds its memory, for who reads that memory from elsewhere. */
  get file(): number | undefined {
    return this.#file;
  }

  /** From this moment on a request finds it `deflating`. `after`: what has to be over before it may begin. */
  hibernate(after?: Promise<void>): Promise<HibernateReport> {
    if (this.#work !== undefined) return this.#work;
    if (this.state === "hibernated" && this.#report !== undefined) return Promise.resolve(this.#report);
    if (!this.instance.alive) return Promise.reject(this.instance.exitError());
    if (this.instance.paged)
      return Promise.reject(
        this.#refusal({
          ok: false,
          code: "refused",
          why: `it was started by ${this.instance.start.loader}: only the pager knows which pages it lacks`,
          // Others of the function can be, which came another way.
          scope: "instance",
        }),
      );
    this.#cancel = new AbortController();
    this.#work = this.#run(this.state, after).finally(() => {
      this.#work = undefined;
    });
    return this.#work;
  }

  /** Resolves when no hibernation is under way, and nothing watches its memory; never rejects. */
  async settled(): Promise<void> {
    await this.#work?.catch(() => undefined);
    await this.#unwatch();
  }

  /** Called before a request is handed over. What is returned must be told when it was. */
  requested(): { sent(): void } | undefined {
    if (this.state === "deflating") this.#cancel.abort();
    if (this.state !== "hibernated") return undefined;
    void this.#wake(true);
    const sent = (): void => {
      faultPoint("wake-request-sent");
      // Behind the microtask that writes it to the keeper: it does not wait for this. What threads did in its sleep is not its own.
      queueMicrotask(() => this.#countFaults());
    };
    return { sent };
  }

  async wake(): Promise<StartResult> {
    if (this.state !== "hibernated") return this.instance.start;
    if (!this.instance.alive) throw this.instance.exitError();
    this.#countFaults();
    await this.#wake(false);
    return this.instance.start;
  }

  #countFaults(): void {
    this.#faultsBefore = processFaults(this.instance.hostPid);
  }

  /** Called with the answer to each request. */
  answered(): void {
    if (this.#faultsBefore === undefined) return;
    const before = this.#faultsBefore;
    this.#faultsBefore = undefined;
    const { instance } = this;
    // The answer goes out first.
    setImmediate(() => {
      const now = instance.start.kind === "wake" ? processFaults(instance.hostPid) : undefined;
      // What had to be waited for was in no recording: a page that is on its way counts as a minor fault.
      if (now !== undefined) {
        instance.start = { ...instance.start, faultsOutside: now.major - before.major };
        this.#wakeSet.note(now.major - before.major);
      }
      void this.#unwatch();
    });
  }

  /** The instance is over. */
  close(): void {
    this.#closed = true;
    this.#cancel.abort();
    void this.#watch?.end(undefined);
    this.tools.mapped.release(this.#wakeSet);
    if (this.#file !== undefined) this.tools.keeper.closeFile(this.#file);
    this.#file = undefined;
    this.hibernatedBytes = 0;
  }

  async #run(before: InstanceState, blocked: Promise<void> | undefined): Promise<HibernateReport> {
    const began = nowMs();
    const { instance, tools } = this;
    this.state = "deflating";
    let deflated = false;
    try {
      if (blocked !== undefined) await blocked;
      await this.#unwatch();
      const prepared = this.#cancelled ? undefined : await this.#prepare(before);
      faultPoint("hibernate-prepared");
      if (!this.#cancelled) this.#file ??= await this.#makeFile();
      faultPoint("hibernate-file-made");
      const reply = this.#cancelled ? CANCELLED : await this.#deflate(prepared?.unusedAllocators ?? []);
      faultPoint("hibernate-deflated");
      const cancelled = reply.cancelled === true;
      const number = (name: string): number => Number(reply[name] ?? 0);
      deflated = !cancelled;
      if (deflated) {
        this.hibernatedBytes = number("hibernatedBytes");
        if (before === "woken" && this.#file !== undefined) {
          this.#wakeSet.recordWritten(this.#file, reply.written ?? []);
          await this.#wakeSet.record(this.#file, tools.mapped, instance.hostPid, reply.touched ?? [], reply.files ?? []);
        }
      }
      const report: HibernateReport = {
        hygieneMs: prepared?.hygieneMs ?? 0,
        stoppedMs: number("stoppedUs") / 1000,
        totalMs: nowMs() - began,
        writtenPages: number("writtenPages"),
        hibernatedBytes: this.hibernatedBytes,
        residentBytes: cancelled ? await this.#residentBytes() : number("residentBytes"),
        mappings: number("mappings"),
        cancelled,
      };
      this.#report = report;
      return report;
    } catch (error) {
      const failed = isThawError(error, "HIBERNATE_FAILED");
      // What is in /proc no more is a process that ended, of which nobody was told yet.
      if (!failed && (!instance.alive || (!isThawError(error) && (await hasEnded(instance))))) throw instance.exitError();
      throw error;
    } finally {
      // A request that came too late to cancel it has woken it by now, also one that came while all this was noted.
      const woken = instance.busy || this.#cancelled;
      this.state = deflated ? (woken ? "woken" : "hibernated") : before;
      if (this.state === "hibernated") this.#asleep();
      tools.log.debug({ instance: instance.id, state: this.state }, "hibernation is over");
    }
  }

  #asleep(): void {
    this.#wokenNs = undefined;
    if (this.#file !== undefined && this.#wakeSet.wanting && !this.#closed)
      this.#watch = WakeWatch.begin(this.tools, this.instance.hostPid, this.#file);
  }

  /** The next request does not wait for it; the next hibernation, which a watched process could not have, does. */
  #unwatch(): Promise<void> {
    const watch = this.#watch;
    this.#watch = undefined;
    if (watch !== undefined) this.#unwatching = this.#recordWatched(watch);
    return this.#unwatching;
  }

  async #recordWatched(watch: WakeWatch): Promise<void> {
    const touches = await watch.end(this.#wokenNs);
    if (touches === undefined || this.#closed || this.#file === undefined) return;
    await this.#wakeSet.recordWatched(this.#file, this.tools.mapped, this.instance.hostPid, touches);
  }

  async #prepare(before: InstanceState): Promise<PreparedHeader> {
    // Whatever becomes of this, the before-snapshot hooks will have run.
    this.instance.announceResumed();
    const collect = before === "warm" ? {} : { collect: false as const };
    return prepare(this.instance, { code: "HIBERNATE_REFUSED", done: "hibernated", ...collect });
  }

  /** Of one that stays awake: not worth a failure. */
  async #residentBytes(): Promise<number> {
    try {
      return (await this.instance.memory()).privateBytes;
    } catch (error) {
      if (!isThawError(error, "KEEPER_FAILED")) throw error;
      return 0;
    }
  }

  get #cancelled(): boolean {
    return this.#cancel.signal.aborted;
  }

  async #makeFile(): Promise<number> {
    const file = await this.tools.keeper.tempFile(this.tools.dir).catch((error: unknown) => {
      throw this.#refusal({ ok: false, code: "exhausted", why: error instanceof ThawError ? error.why : String(error) });
    });
    if (!this.#closed) return file;
    this.tools.keeper.closeFile(file);
    throw this.instance.exitError();
  }

  async #deflate(unusedAllocators: readonly string[]): Promise<Reply> {
    const { instance, tools } = this;
    const argv = [
      tools.extractor,
      "deflate",
      String(instance.hostPid),
      String(CONTROL_FD),
      `limit=${instance.spec.memoryMb * 2 ** 20}`,
    ];
    const { kept } = this.#wakeSet;
    if (kept.length > 0) argv.push(`kept=${kept.join(",")}`);
    argv.push(...unusedAllocators.map((name) => `unused=${name}`));
    const ended = await tools.keeper.helper(argv, { files: [this.#file ?? 0], cancel: this.#cancel.signal });
    if (endedBefore(ended) && this.#cancelled) return CANCELLED;
    const reply = parseReply(ended.stdout);
    if (reply.ok) return reply;
    if (reply.code !== "ended" && (await hasEnded(instance, reply))) throw instance.exitError();
    throw this.#refusal(reply);
  }

  #refusal(reply: Reply): ThawError {
    const what = `function "${this.instance.spec.name}" could not be hibernated`;
    const why = String(reply.why);
    if (reply.code === "refused") {
      const details = { scope: reply.scope === "instance" ? "instance" : "function" };
      return new ThawError("HIBERNATE_REFUSED", { what, why, fix: "Nothing: it goes on as it was", details });
    }
    if (reply.code === "exhausted")
      return new ThawError("RESOURCE_EXHAUSTED", {
        what: `${what}, and goes on as it was`,
        why,
        fix: "free some space where the server keeps its images (--data)",
      });
    if (reply.code !== "ended") return new ThawError("HIBERNATE_FAILED", { what: `${what}, and goes on as it was`, why });
    const error = new ThawError("HIBERNATE_FAILED", { what: `${what}, and was ended`, why });
    this.instance.fail(error);
    return error;
  }

  /** Reads ahead beside whatever comes next. Resolves when the pager has asked the disk for all of it. */
  async #wake(requested: boolean): Promise<void> {
    const began = monotonicNs();
    const { instance, tools } = this;
    this.state = "woken";
    this.#wokenNs = began;
    const { ofFiles, ofOwn } = this.#wakeSet;
    const { generation, heat } = instance.start;
    const start = (readUs: number, pages: number): StartResult => ({
      kind: "wake",
      ...(generation === undefined ? {} : { generation }),
      ...(heat === undefined ? {} : { heat }),
      us,
      phases: [
        { name: "send", us },
        { name: "prefetch", us: readUs },
      ],
      waitUs: 0,
      prefetchedPages: pages,
    });
    const reading = [
      tools.keeper.prefetchEncoded(ofFiles, { ahead: requested ? instance.id : 0 }),
      tools.keeper.prefetchEncoded(ofOwn),
    ];
    // They seemed to be cached, and were not all.
    if (requested && ofFiles.length > 0)
      setTimeout(() => instance.busy && instance.alive && void tools.keeper.prefetchEncoded(ofFiles), LATE_MS);
    const us = usBetween(began, monotonicNs());
    instance.start = start(0, 0);
    const read = allPrefetched(await Promise.all(reading));
    const pages = read.pages < 0 ? this.#wakeSet.pages : read.pages;
    // Unless it was hibernated meanwhile: what its next wake says is not this one's.
    if (this.#wokenNs === began) instance.start = { ...instance.start, ...start(read.us, pages) };
  }
}

const CANCELLED: Reply = { ok: true, cancelled: true };

/** It was told to end before it could hear that. */
function endedBefore({ signal, stdout }: HelperResult): boolean {
  return signal === SIGTERM && stdout.length === 0;
}
