/**
 * Memory pressure as the kernel tells it (PSI, Documentation/accounting/psi.rst): the part of the time in which some task waited for
 * memory. Read once a second, because Node cannot wait for POLLPRI. Kernels without it, or with it switched off (psi=0, or
 * CONFIG_PSI_DEFAULT_DISABLED: the file is there and reading it fails), have only the budget.
 *
 * PSI counts those, too, who wait at the limit of their own control group: a function that reads more files than its memory limit holds waits a quarter
 * of the time on a machine with 80 % of its memory free, and nobody else's memory helps it. So the machine itself must have looked for pages meanwhile:
 * `pgscan_kswapd` and `pgscan_direct` of /proc/vmstat leave out what is done for a group's limit (mm/vmscan.c, cgroup_reclaim()).
 */
import { readFileSync } from "node:fs";

const PSI_PATH = "/proc/pressure/memory";
const VMSTAT_PATH = "/proc/vmstat";

/** Both since the machine started. */
export interface Pressure {
  /** Microseconds in which some task waited for memory. */
  readonly stalledUs: number;
  /** Pages that the machine looked at because it was short of memory. */
  readonly scannedPages: number;
}

/** Undefined when the kernel does not say. */
export type PressureReader = () => Pressure | undefined;

/** Reads {@link PSI_PATH} and {@link VMSTAT_PATH}. */
export function readPressure(psiPath = PSI_PATH, vmstatPath = VMSTAT_PATH): Pressure | undefined {
  try {
    const total = /^some .*\btotal=(\d+)/m.exec(readFileSync(psiPath, "utf8"))?.[1];
    const scanned = [...readFileSync(vmstatPath, "utf8").matchAll(/^pgscan_(?:kswapd|direct) (\d+)$/gm)];
    if (total === undefined || scanned.length !== 2) return undefined;
    return { stalledUs: Number(total), scannedPages: scanned.reduce((sum, [, pages]) => sum + Number(pages), 0) };
  } catch {
    return undefined;
  }
}

/** Waiting for more than this part of the time is pressure. */
const STALLED_MIN = 0.1;
const EVERY_MS = 1_000;

/** Calls `onPressure` once for every second under pressure. Undefined when this kernel does not tell. */
export function watchPressure(
  onPressure: () => void,
  read: PressureReader = readPressure,
  everyMs = EVERY_MS,
): NodeJS.Timeout | undefined {
  let before = read();
  if (before === undefined) return undefined;
  return setInterval(() => {
    const now = read();
    if (now === undefined || before === undefined) return;
    const stalled = now.stalledUs - before.stalledUs >= everyMs * 1000 * STALLED_MIN;
    if (stalled && now.scannedPages > before.scannedPages) onPressure();
    before = now;
  }, everyMs).unref();
}
