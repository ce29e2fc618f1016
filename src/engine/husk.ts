/** One husk: an empty sandboxed process (native/husk.c), from its making to the end of what it became. */
import type { ThawError } from "../base/errors.js";
import { NO_FAULTS, type ProcessFaults } from "./faults.js";
import type { Keeper } from "./keeper.js";
import type { HuskReady, InstanceExit, InstanceListener, PagedReport } from "./keeper-messages.js";
import type { Told } from "./parts.js";
import type { HuskLevel } from "./types.js";

/** An empty process, waiting. Its messages go to `heir` once it has one. */
export class Husk implements InstanceListener {
  id = 0;
  heir: InstanceListener | undefined;
  exit: InstanceExit | undefined;
  level: HuskLevel = "generic";
  host: HuskReady = { pid: 0, initPid: 0, us: 0 };
  /** How far its monotonic clock is ahead of ours: its stamps are, too. */
  clockShiftNs = 0;
  /** Resident memory of its own when it was made; while it waits, that does not change. */
  privateBytes = 0;
  /** What it cost to make, wall microseconds. */
  madeUs = 0;
  /** What its image's pages are touched from here on can be told: it was parked to record. */
  tracked = false;
  /** It is its image's process already, and waits for a request in the runtime's read. */
  resumed = false;
  /** The function's memory that its limits were set for; undefined while it has none of its own. */
  limitedToMb: number | undefined;
  /** What it had taken when it was ready: what an instance takes is counted from there. */
  faultsBefore: ProcessFaults = NO_FAULTS;
  private sends = 0;
  private readonly exitListeners: (() => void)[] = [];
  private heard: (() => void)[] = [];

  constructor(readonly pid: number) {}

  /** Its last stage begins. */
  resumesAhead(): void {
    this.resumed = true;
  }

  /** To its control socket. */
  send(keeper: Keeper, parts: readonly Buffer[]): void {
    this.sends += 1;
    keeper.send(this.id, ...parts);
  }

  /** The same; told once it lies there, an error when nobody is left to read it. */
  deliver(keeper: Keeper, parts: readonly Buffer[], told: Told<void>): void {
    this.sends += 1;
    keeper.beginDelivery(this.id, parts, told);
  }

  onData(bytes: Buffer): void {
    // Whoever waits for a sign of life is told before what was said is acted on.
    this.speaks();
    this.heir?.onData(bytes);
  }
  private speaks(): void {
    for (const listener of this.heard.splice(0)) listener();
  }
  onLog(bytes: Buffer): void {
    this.heir?.onLog(bytes);
  }
  onControlEnd(): void {
    this.heir?.onControlEnd?.();
  }
  onFailure(error: ThawError): void {
    // While it waits: a limit that is not in force will be asked for again.
    this.limitedToMb = undefined;
    this.heir?.onFailure?.(error);
  }
  onPaged(report: PagedReport): void {
    this.heir?.onPaged?.(report);
  }
  onExit(told: InstanceExit): void {
    // What was on its way when it ended met nobody.
    const exit = told.sends < this.sends ? { ...told, unread: true } : told;
    this.exit = exit;
    this.heir?.onExit(exit);
    for (const listener of this.exitListeners.splice(0)) listener();
    this.speaks();
  }
  /** Calls when the process says something next, or ends; not when it has ended. */
  onSign(listener: () => void): void {
    this.heard.push(listener);
  }
  /** Resolves when every process of it is gone. */
  gone(): Promise<void> {
    return this.exit !== undefined ? Promise.resolve() : new Promise((resolve) => this.exitListeners.push(resolve));
  }
}
