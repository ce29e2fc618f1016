/** Sizes: constants, and their forms for people. */

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;
export const TIB = 1024 * GIB;

/** Bytes of a page on x86-64. */
export const PAGE_BYTES = 4096;

const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] as const;

/** `1536` becomes `1.5 KiB`; three significant figures at most, whole bytes below a KiB. */
export function formatBytes(bytes: number): string {
  let value = Math.abs(bytes);
  let unit = 0;
  // 1023.95 would round to "1024", so the next unit begins just below 1024.
  while (value >= 1023.5 && unit < BYTE_UNITS.length - 1) {
    value /= KIB;
    unit++;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return `${bytes < 0 ? "-" : ""}${trimZeros(value.toFixed(digits))} ${BYTE_UNITS[unit]}`;
}

/** `1840` microseconds become `1.84 ms`. Three significant figures. */
export function formatUs(us: number): string {
  const size = Math.abs(us);
  if (size < 999.5) return `${trimZeros(us.toPrecision(3))} us`;
  if (size < 999_500) return `${trimZeros((us / 1000).toPrecision(3))} ms`;
  return `${trimZeros((us / 1e6).toFixed(size < 9.995e6 ? 2 : 1))} s`;
}

function trimZeros(text: string): string {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}
