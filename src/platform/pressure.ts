/**
 * Memory pressure as the kernel tells it (PSI, Documentation/accounting/psi.rst): the part of the time in which some task waited for
 * memory. Read once a second, because Node cannot wait for POLLPRI. Kernels without it, or with it switched off (psi=0, or
 * CONFIG_PSI_DEFAULT_DISABLED: the file is there and reading it fails), have only the budget.
 */
import { readFileSync } from "node:fs";

const PSI_PATH = "/proc/pressure/memory";

/** Microseconds in total that some task waited for memory; undefined when the kernel does not say. */
export type PressureReader = () => number | undefined;

/** Reads {@link PSI_PATH}. */
export function readPressure(path = PSI_PATH): number | undefined {
  try {
    const found = /^some .*\btotal=(\d+)/m.exec(readFileSync(path, "utf8"));
    return found?.[1] === undefined ? undefined : Number(found[1]);
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
    const total = read();
    if (total === undefined || before === undefined) return;
    if (total - before >= everyMs * 1000 * STALLED_MIN) onPressure();
    before = total;
  }, everyMs).unref();
}
