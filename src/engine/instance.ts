/**
 * A running instance: one sandbox, one control socket, one request at a time.
 *
 *   starting ──ready / finish reported──▶ parked ──invoke──▶ running ──result, error──▶ parked
 *                                           │ ▲                │
 *                                        prepare            deadline, exit, garbage
 *                                           ▼ │                ▼
 *                                        preparing           ended
 */
import { takeUuid } from "../base/ahead.js";
import { nowMs } from "../base/clock.js";
import { assert, ThawError } from "../base/errors.js";
import { isEnding } from "../linux/ending.js";
import { encodeFrame, FrameParser, type FunctionFrame, type PrepareHeader, type ThawHeader } from "../runtime/frames.js";
import { checkBody } from "./check-arguments.js";
import { both, Gate } from "./gate.js";
import type { Hibernation } from "./hibernate.js";
import type { Husk } from "./husk.js";
import {
  controlClosed,
  type Ending,
  type EndReason,
  exitError,
  notTheReply,
  type UnansweredRequest,
  verdict,
} from "./instance-end.js";
import { invokeHeader } from "./invoke-header.js";
import type { Keeper } from "./keeper.js";
import type { InstanceExit, InstanceListener, PagedReport } from "./keeper-messages.js";
import { callSafely, type Told } from "./parts.js";
import { Printed } from "./printed.js";
import { residentMemory } from "./resident.js";
import { takeSeed } from "./seed.js";
import type { SharedBase } from "./shared-base.js";
import { deliverFirst } from "./stages.js";
import { Starting } from "./starting.js";
import type {
  FreezeOptions,
  FunctionSpec,
  HibernateReport,
  Image,
  Instance,
  InstanceMemory,
  InstanceState,
  InvokeOptions,
  InvokeResult,
  PageCounts,
  StartFaults,
  StartResult,
} from "./types.js";

const SIGABRT = 6;
/** Last words of V8 when its heap is full. */
const HEAP_FULL = "JavaScript heap out of memory";
/** Between the end of the control socket and that of the process. */
const CONTROL_END_GRACE_MS = 1000;

/** What an instance asks of the engine. */
export interface InstanceOwner {
  /** {@link EngineOptions.graceMs}. */
  readonly graceMs: number;
  freeze(instance: LiveInstance, options: FreezeOptions): Promise<Image>;
  pages(instance: LiveInstance): Promise<PageCounts>;
  hibernation(instance: LiveInstance): Hibernation;
  /** Called once after the first answer, which was to `event`; a second request waits for the promise. */
  firstAnswer(instance: LiveInstance, event: Buffer | string): Promise<void> | undefined;
  /** Called before a freeze or a hibernation, which waits for the promise: what has not been recorded by then is not recorded. */
  abandonRecording(instance: LiveInstance): Promise<void> | undefined;
  ended(instance: LiveInstance): void;
}

interface Waiting {
  readonly kind: "ready" | "prepared";
  readonly resolve: (frame: FunctionFrame) => void;
  readonly reject: (error: Error) => void;
  /** Of hooks: what is told when they take longer than a request that waits behind them may. */
  readonly tooSlow: ((ms: number) => ThawError) | undefined;
}

interface Running extends UnansweredRequest {
  readonly payload: Buffer | string;
  readonly resolve: (result: InvokeResult) => void;
  readonly reject: (error: Error) => void;
  /** Set when the request is on its way. */
  timer: NodeJS.Timeout | undefined;
}

/** A process that is, or becomes, a function, from its first request to its end. */
export class LiveInstance implements Instance, InstanceListener {
  served = 0;
  /** Pids of the lineage, this instance's own included. */
  lineagePids: readonly number[];
  /** Image that it was thawed from. */
  origin: Image | undefined;
  /** Page space that it shares with other images of its runtime; frozen, it goes on sharing it. */
  base: SharedBase | undefined;
  /** Called once, when the first request after a thaw was handed to the keeper. */
  onRequestSent: (() => void) | undefined;
  /** The pager brings its pages: it ends with the pager, and cannot be frozen. */
  paged = false;
  /** Its last request was a rehearsal. */
  rehearsed = false;
  onInstalled: ((report: PagedReport) => void) | undefined;
  readonly starting: Starting;
  /** Told to the runtime with the next request: it then renews what must be unique. */
  private announce: ThawHeader | undefined;
  /** Before-snapshot hooks ran in this process, so that the after-restore hooks are due. */
  private resumed = false;
  /** Made when it is first put to sleep. */
  hibernation: Hibernation | undefined;
  readonly gate = new Gate();
  private readonly parser = new FrameParser();
  private readonly printed = new Printed();
  private running: Running | undefined;
  private waiting: Waiting | undefined;
  private end: EndReason | undefined;
  private exit: InstanceExit | undefined;
  /** V8 ended the process at its own limit, which is derived from the function's and lies just below. */
  private heapFull = false;
  /** Done when the answer is out, at the latest before the next request or the end. */
  private afterAnswer: (() => void) | undefined;
  private readonly exitListeners: ((reason: string) => void)[] = [];

  constructor(
    private readonly keeper: Keeper,
    readonly owner: InstanceOwner,
    readonly husk: Husk,
    readonly spec: FunctionSpec,
    start: StartResult,
  ) {
    this.starting = new Starting(start);
    this.lineagePids = [husk.pid];
    husk.heir = this;
  }

  get id(): number {
    return this.husk.id;
  }

  get alive(): boolean {
    return this.end === undefined && this.exit === undefined && this.husk.exit === undefined;
  }

  get hostPid(): number {
    return this.husk.host.pid;
  }

  /** The next request carries a thaw header, so that clones differ. */
  announceThaw(generation: number): void {
    this.announce = { ...takeSeed(), pid: this.husk.pid, generation };
  }

  /** The next request runs the after-restore hooks, and renews nothing. */
  announceResumed(): void {
    this.resumed = true;
  }

  /** Whether a request is in it that it has not answered. */
  get busy(): boolean {
    return this.running !== undefined;
  }

  get start(): StartResult {
    return this.starting.result;
  }

  set start(start: StartResult) {
    this.starting.result = start;
  }

  get started(): boolean {
    return this.starting.succeeded;
  }

  /** No answer goes out before `begin` was told. With an error the instance is over, and nothing of the function ran. */
  startsWith(begin: (told: Told<void>) => void): void {
    this.starting.with(begin, (error) => {
      // That the husk ended is told by its exit too, perhaps first; what counts is that it never became the function.
      if (this.end?.kind === "exited") this.end = undefined;
      this.fail(error);
    });
  }

  /** Resolves with the next frame of that kind, or rejects with what happened instead. */
  expect(kind: Waiting["kind"], tooSlow?: Waiting["tooSlow"]): Promise<FunctionFrame> {
    assert(this.waiting === undefined && this.running === undefined, "instance already waits");
    return new Promise((resolve, reject) => {
      this.waiting = { kind, resolve, reject, tooSlow };
      if (!this.alive) this.settle();
    });
  }

  /** Sends a frame without a body, such as `prepare`. */
  tell(header: PrepareHeader): void {
    this.husk.send(this.keeper, encodeFrame(header));
  }

  /** To a clone of a base image: become the function with this environment. Answered as a boot is. */
  tellLoad(env: Readonly<Record<string, string>>): void {
    this.announceThaw(0);
    assert(this.announce !== undefined, "announced just now");
    this.husk.send(this.keeper, encodeFrame({ type: "load", thaw: this.announce }, JSON.stringify({ env })));
    this.announce = undefined;
  }

  invoke(payload: Buffer | string, options: InvokeOptions = {}, beganMs = options.beganMs ?? nowMs()): Promise<InvokeResult> {
    const wrong = this.running === undefined ? checkBody(payload) : new Error("bug: an instance serves one request at a time");
    if (wrong !== undefined) return Promise.reject(wrong);
    this.runAfterAnswer();
    const { shut } = this.gate;
    if (shut !== undefined) {
      const timer = setTimeout(() => this.expire(this.spec.timeoutMs), this.spec.timeoutMs);
      return shut.finally(() => clearTimeout(timer)).then(() => this.invoke(payload, options, beganMs));
    }
    const waking = this.hibernation?.requested();
    return new Promise((resolve, reject) => {
      const requestId = options.requestId ?? takeUuid();
      const now = Date.now();
      const deadlineMs = options.deadlineMs ?? now + this.spec.timeoutMs;
      const timeoutMs = Math.max(0, deadlineMs - now);
      const header = invokeHeader(this.spec, options, { requestId, deadlineMs, thaw: this.announce, resumed: this.resumed });
      const frame = encodeFrame(header, payload);
      const running: Running = { payload, requestId, beganMs, resolve, reject, timeoutMs, sent: this.alive, timer: undefined };
      this.running = running;
      if (!this.alive) {
        this.settle();
        return;
      }
      this.announce = undefined;
      this.resumed = false;
      this.rehearsed = options.rehearsal === true;
      if (this.husk.resumed && this.served === 0) this.startsWith((told) => deliverFirst(this.keeper, this.husk, frame, told));
      else this.husk.send(this.keeper, frame);
      waking?.sent();
      this.keeper.flush();
      running.timer = setTimeout(() => this.expire(timeoutMs), timeoutMs);
      this.onRequestSent?.();
      this.onRequestSent = undefined;
    });
  }

  async freeze(options: FreezeOptions = {}): Promise<Image> {
    assert(options.live === true || this.running === undefined, "an instance is frozen between two requests");
    return this.gate.alone(async () => {
      await this.gate.shut;
      await this.hibernation?.settled();
      // Hooks and hygiene bring its memory back.
      await this.hibernation?.wake();
      await this.unwatch();
      return this.owner.freeze(this, options);
    });
  }

  async faults(): Promise<StartFaults | undefined> {
    return this.start.kind === "wake" ? undefined : this.starting.faults();
  }

  /** Whether it did nothing since it answered that many requests. */
  untouchedSince(served: number): boolean {
    return this.alive && this.served === served && this.running === undefined;
  }

  /** Runs `task` once the answer is out, at the latest before the next request or the end. */
  beforeNext(task: () => void): void {
    this.afterAnswer = task;
    setImmediate(() => this.runAfterAnswer());
  }

  private runAfterAnswer(): void {
    // One may leave another.
    while (this.afterAnswer !== undefined) {
      const task = this.afterAnswer;
      this.afterAnswer = undefined;
      task();
    }
  }

  pages(): Promise<PageCounts> {
    return this.owner.pages(this);
  }

  async memory(): Promise<InstanceMemory> {
    const resident = await residentMemory(this.keeper, this.husk, () => this.exitError());
    return { ...resident, hibernatedBytes: this.hibernation?.hibernatedBytes ?? 0 };
  }

  get state(): InstanceState {
    return this.hibernation?.state ?? "warm";
  }

  hibernate(): Promise<HibernateReport> {
    assert(this.running === undefined, "an instance is hibernated between two requests");
    const unwatched = this.unwatch();
    this.hibernation ??= this.owner.hibernation(this);
    return this.hibernation.hibernate(both(this.gate.quiet, unwatched));
  }

  async wake(): Promise<StartResult> {
    return this.hibernation === undefined ? this.start : this.hibernation.wake();
  }

  async dispose(): Promise<void> {
    // A working set that is being read from this process is worth the few milliseconds.
    if (this.alive && !this.gate.working) await this.gate.shut;
    this.runAfterAnswer();
    this.end ??= { kind: "disposed" };
    this.keeper.kill(this.id);
    await this.husk.gone();
    await this.hibernation?.settled();
  }

  onExit(exitOrListener: InstanceExit | ((reason: string) => void)): void {
    if (typeof exitOrListener === "function") {
      if (this.husk.exit === undefined) this.exitListeners.push(exitOrListener);
      else callSafely(() => exitOrListener(this.reason()));
      return;
    }
    this.runAfterAnswer();
    this.exit = exitOrListener;
    this.heapFull = exitOrListener.signal === SIGABRT && this.printed.includes(HEAP_FULL);
    this.end ??= { kind: "exited" };
    this.hibernation?.close();
    this.starting.whenOver(() => this.settle());
    for (const listener of this.exitListeners.splice(0)) callSafely(() => listener(this.reason()));
    this.owner.ended(this);
  }

  /** The start failed after the caller was given this instance. */
  fail(error: ThawError): void {
    this.end ??= { kind: "failed", error };
    this.keeper.kill(this.id);
    this.settle();
  }

  onPaged(report: PagedReport): void {
    this.onInstalled?.(report);
  }

  /** Why it failed, when it did and that is known. */
  get failure(): ThawError | undefined {
    return this.end?.kind === "failed" ? this.end.error : undefined;
  }

  onFailure(error: ThawError): void {
    this.fail(error);
  }

  onLog(bytes: Buffer): void {
    this.printed.add(bytes);
  }

  onControlEnd(): void {
    // Of a disposed one nobody waits for anything, and the timer would keep it for its second: hundreds, where starts follow each other.
    if (!this.alive) return;
    // A process that ends closes it too, and what it ended of is told by its exit, however late that is. Else no answer can come.
    const look = (): void => {
      if (this.exit !== undefined) return;
      if (isEnding(this.hostPid)) return void setTimeout(look, CONTROL_END_GRACE_MS).unref();
      this.violate(controlClosed());
    };
    setTimeout(look, CONTROL_END_GRACE_MS).unref();
  }

  onData(bytes: Buffer): void {
    if (!this.alive) return;
    let frames: FunctionFrame[];
    try {
      frames = this.parser.push(bytes);
    } catch (error) {
      this.violate(error as ThawError);
      return;
    }
    for (const frame of frames) this.accept(frame);
    // Whoever asks next would wait for the rest of it, or be told of what is none of theirs.
    if (this.parser.unfinished && this.running === undefined && this.waiting === undefined)
      this.violate(notTheReply("a frame was begun that nobody asked for"));
  }

  private accept(frame: FunctionFrame): void {
    const { header } = frame;
    const { running, waiting } = this;
    if (
      (header.type === "result" || header.type === "error") &&
      running !== undefined &&
      header.requestId === running.requestId
    ) {
      this.running = undefined;
      clearTimeout(running.timer);
      this.served++;
      this.hibernation?.answered();
      const fatal = header.last === true;
      if (this.served === 1 && !fatal) this.recordFirst(running.payload);
      this.gate.idle();
      const totalMs = nowMs() - running.beganMs;
      const result: InvokeResult = {
        payload: frame.body,
        ...(header.type === "error" ? { functionError: "Unhandled" as const } : {}),
        ...(header.platformError === undefined ? {} : { platformError: header.platformError }),
        logs: this.takeLogs(),
        // It may have been the function that wrote this, and whatever it says is summed up with what others need.
        handlerMs: Math.min(header.handlerMs, totalMs),
        totalMs,
        maxMemoryMb: Math.min(header.maxMemoryMb, this.spec.memoryMb),
        alive: !fatal,
      };
      this.starting.whenOver(() => running.resolve(result));
      if (fatal) void this.dispose();
      return;
    }
    const kind =
      header.type === "ready" || header.type === "initError"
        ? "ready"
        : header.type === "prepared" || header.type === "prepareError"
          ? "prepared"
          : undefined;
    if (waiting !== undefined && kind === waiting.kind) {
      this.waiting = undefined;
      waiting.resolve(frame);
      return;
    }
    this.violate(notTheReply(`a «${header.type}» came that nobody asked for`));
  }

  /** Neither a freeze nor a hibernation can have a process whose memory is watched. */
  private unwatch(): Promise<void> | undefined {
    this.runAfterAnswer();
    this.starting.takeFollow()?.();
    return this.owner.abandonRecording(this);
  }

  private recordFirst(event: Buffer | string): void {
    const follow = this.starting.takeFollow();
    if (follow !== undefined) {
      this.beforeNext(() => {
        follow();
        // Nothing is recorded of such a start, so nothing has to wait.
        void this.owner.firstAnswer(this, event);
      });
      return;
    }
    const recording = this.owner.firstAnswer(this, event);
    if (recording === undefined) return;
    this.gate.shutUntil(recording);
  }

  private violate(error: ThawError): void {
    this.end ??= { kind: "violation", error };
    this.keeper.kill(this.id);
  }

  /** A request's time is over. Hooks that it waited for are the reason where they still run: another instance can answer it. */
  private expire(ms: number): void {
    const { running, waiting } = this;
    if (waiting?.tooSlow !== undefined) this.fail(waiting.tooSlow(ms));
    else if (running !== undefined) {
      this.end ??= { kind: "timeout" };
      this.keeper.kill(this.id);
    }
  }

  /** Answers whoever waits, once the instance is over. */
  private settle(): void {
    const { running, waiting } = this;
    this.running = undefined;
    this.waiting = undefined;
    if (running !== undefined) {
      clearTimeout(running.timer);
      const told = verdict(this.ending, { ...running, behindHooks: waiting !== undefined }, this.served);
      if (told instanceof ThawError) running.reject(told);
      else running.resolve({ ...told, logs: this.takeLogs() });
    }
    this.gate.idle();
    if (waiting !== undefined) waiting.reject(this.end?.kind === "failed" ? this.end.error : this.exitError());
  }

  takeLogs(): Buffer {
    return this.printed.take();
  }

  private get ending(): Ending {
    const { end, exit, spec, heapFull } = this;
    return { end, exit, spec, heapFull };
  }

  /** Why the instance is over, as an error. */
  exitError(): ThawError {
    return exitError(this.ending);
  }

  private reason(): string {
    return this.end?.kind === "disposed" ? "disposed" : this.exitError().message;
  }
}
