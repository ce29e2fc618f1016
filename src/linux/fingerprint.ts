/** What binds an image to a machine: kernel build, CPU features, boot. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { release, version } from "node:os";

export interface Fingerprint {
  /** `uname -r` and `-v`: another build may lay out vdso and signal frames differently. */
  readonly kernel: string;
  /** Digest over vendor, family, model and feature flags: code that was compiled for this CPU lies in the image. */
  readonly cpu: string;
  readonly bootId: string;
}

/** Reads this machine's fingerprint. */
export function readFingerprint(): Fingerprint {
  const first = readFileSync("/proc/cpuinfo", "utf8").split("\n\n")[0] ?? "";
  const relevant = first.split("\n").filter((line) => /^(vendor_id|cpu family|model|model name|flags)\s*:/.test(line));
  const sorted = relevant.map((line) => (line.startsWith("flags") ? line.split(/\s+/).sort().join(" ") : line));
  return {
    kernel: `${release()} ${version()}`,
    cpu: createHash("sha256").update(sorted.join("\n")).digest("hex"),
    bootId: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
  };
}
