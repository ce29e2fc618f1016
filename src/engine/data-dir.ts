/** What the directory of the server's data must allow. */
import { readFileSync, realpathSync } from "node:fs";
import { ThawError } from "../base/errors.js";
import { mountOf } from "../linux/mounts.js";

/** Code that a runtime compiled lies in its image, and is mapped from there. UNSUPPORTED_PLATFORM. */
export function refuseNoexec(dataDir: string): void {
  const mount = mountOf(realpathSync(dataDir), readFileSync("/proc/self/mounts", "utf8"));
  if (mount?.options.includes("noexec") !== true) return;
  throw new ThawError("UNSUPPORTED_PLATFORM", {
    what: `images cannot be kept in ${dataDir}`,
    why: `${mount.point} is mounted noexec, and an image holds code`,
    fix: `choose another directory with --data, or: mount -o remount,exec ${mount.point}`,
  });
}
