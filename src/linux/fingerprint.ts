/** What binds an image to a machine and a thaw: kernel build, CPU features, boot, and the runtime in the image that speaks with the server. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { release, version } from "node:os";
import { join } from "node:path";

/** An image is thawed only where all of it but the boot is as at the freeze. */
export interface Fingerprint {
  /** `uname -r` and `-v`: another build may lay out vdso and signal frames differently. */
  readonly kernel: string;
  /** Digest over vendor, family, model and feature flags: code that was compiled for this CPU lies in the image. */
  readonly cpu: string;
  readonly bootId: string;
  /** Digest over the files of our own runtime, of all languages: an image has a copy of it in memory, as old as the image. */
  readonly runtime: string;
}

/** Reads this machine's fingerprint, and that of the runtime in `runtimeDir`. */
export function readFingerprint(runtimeDir: string): Fingerprint {
  const first = readFileSync("/proc/cpuinfo", "utf8").split("\n\n")[0] ?? "";
  const relevant = first.split("\n").filter((line) => /^(vendor_id|cpu family|model|model name|flags)\s*:/.test(line));
  const sorted = relevant.map((line) => (line.startsWith("flags") ? line.split(/\s+/).sort().join(" ") : line));
  return {
    kernel: `${release()} ${version()}`,
    cpu: createHash("sha256").update(sorted.join("\n")).digest("hex"),
    bootId: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
    runtime: digestOfFiles(runtimeDir),
  };
}

function digestOfFiles(dir: string): string {
  const hash = createHash("sha256");
  for (const name of readdirSync(dir, { recursive: true, encoding: "utf8" }).sort()) {
    const path = join(dir, name);
    if (/\.(cjs|mjs|py|json)$/.test(name) && statSync(path).isFile()) hash.update(name).update(readFileSync(path));
  }
  return hash.digest("hex");
}
