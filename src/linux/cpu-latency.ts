/**
 * How deeply idle processors may sleep while somebody waits for an answer. A request passes from client to server to function and back,
 * and each step wakes a processor: 5 us from its shallowest idle state, 30 and more on a virtual machine whose idle processors are given
 * back to the host, 100 and more from the deep states of real hardware. The kernel takes a wish about it from whoever holds
 * /dev/cpu_dma_latency open (PM QoS, Documentation/power/pm_qos_interface.rst), and forgets it when the descriptor is closed, however
 * its holder ends. Off by default: processors that poll are their host's, which then gives them less (docs/design/thaw.md).
 */
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import { errorText, ThawError } from "../base/errors.js";

/** Microseconds; 0: idle processors poll. `off`: nothing is wished. */
export type CpuLatencyWish = number | "off";

const DEVICE = "/dev/cpu_dma_latency";
const DRIVER = "/sys/devices/system/cpu/cpuidle/current_driver";
/** No wish at all (PM_QOS_CPU_LATENCY_DEFAULT_VALUE): what an open device says until something is written. */
const NO_WISH_US = 2_000_000_000;
/** The deepest states of a processor take less. */
export const CPU_LATENCY_US_MAX = 10_000;
/** Who waits for longer than this waits for the function. Idle processors are not kept from sleeping by one that runs for minutes. */
const HELD_MS_MAX = 5;
/** After the last answer: it has to reach the client, and the next request often follows. */
const LINGER_MS = 1;

/** INVALID_ARGUMENT unless the kernel could be asked for it. */
export function checkCpuLatency(wish: CpuLatencyWish = "off"): void {
  if (wish === "off") return;
  if (Number.isInteger(wish) && wish >= 0 && wish <= CPU_LATENCY_US_MAX) return;
  throw new ThawError("INVALID_ARGUMENT", {
    what: `a wake-up latency of ${JSON.stringify(wish)} cannot be asked for`,
    why: `it is off, or a whole number of microseconds up to ${CPU_LATENCY_US_MAX}`,
  });
}

/** What is wished of this machine's idle processors while a request is answered. */
export interface CpuLatencyInfo {
  /** Absent: nothing is wished, or nothing can be. */
  readonly us?: number;
  /** The kernel's cpuidle driver; `none` without one. */
  readonly driver: string;
  /** Why nothing can be wished. */
  readonly why?: string;
}

/** Files of the kernel; others in tests. */
export interface CpuLatencyPaths {
  readonly device?: string;
  readonly driver?: string;
}

/** Holds the wish while requests are answered. Costs 15 to 25 us when none was held: processors that sleep are woken to hear of it. */
export class CpuLatency {
  #info: CpuLatencyInfo;
  readonly #held = Buffer.alloc(4);
  readonly #free = Buffer.alloc(4);
  #fd: number | undefined;
  #waiting = 0;
  #holding = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(wish: CpuLatencyWish = "off", { device = DEVICE, driver: driverFile = DRIVER }: CpuLatencyPaths = {}) {
    const driver = driverName(driverFile);
    this.#info = { driver };
    if (wish === "off") return;
    // It has one idle state, and asks nobody how deep to sleep.
    if (driver === "none") {
      this.#info = { driver, why: "this kernel has no cpuidle driver" };
      return;
    }
    try {
      this.#fd = openSync(device, "r+");
    } catch (error) {
      const absent = (error as NodeJS.ErrnoException).code === "ENOENT";
      this.#info = { driver, why: absent ? `there is no ${device} here` : errorText(error) };
      return;
    }
    this.#info = { driver, us: wish };
    this.#held.writeInt32LE(wish);
    this.#free.writeInt32LE(NO_WISH_US);
  }

  /** What is wished now. */
  get info(): CpuLatencyInfo {
    return this.#info;
  }

  /** Whether processors are kept awake now. */
  get holding(): boolean {
    return this.#holding;
  }

  /**
   * Somebody waits, until {@link answered}: to be called as soon as the request is in hand. The kernel is told at once: at the end of the turn, when the
   * request is on its way, that takes the processor from the keeper.
   */
  awaited(): void {
    if (this.#fd === undefined) return;
    this.#waiting++;
    if (!this.#holding) {
      this.#holding = true;
      this.#tell(this.#held);
    }
    this.#freeIn(HELD_MS_MAX);
  }

  /** One who waited has the answer, or an error. */
  answered(): void {
    if (this.#fd === undefined) return;
    this.#waiting--;
    if (this.#waiting === 0 && this.#holding) this.#freeIn(LINGER_MS);
  }

  /** Lets them sleep, for good. Idempotent. */
  close(): void {
    clearTimeout(this.#timer);
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
    this.#holding = false;
  }

  #freeIn(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#holding = false;
      this.#tell(this.#free);
    }, ms).unref();
  }

  /** A wish that the kernel does not take fails nobody's request: nothing is wished any more. */
  #tell(wish: Buffer): void {
    if (this.#fd === undefined) return;
    try {
      writeSync(this.#fd, wish);
    } catch (error) {
      this.close();
      this.#info = { driver: this.#info.driver, why: errorText(error) };
    }
  }
}

function driverName(path: string): string {
  try {
    return readFileSync(path, "utf8").trim() || "none";
  } catch {
    return "none";
  }
}
