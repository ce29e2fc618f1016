/** What the directory of the server's data must allow. */
import { existsSync, mkdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { errorText, ThawError } from "../base/errors.js";
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

/** Makes it where it is not there, with the folder of the images. INVALID_ARGUMENT says why it cannot be had. */
export function makeDataDir(dataDir: string): void {
  try {
    makeFolder(dataDir);
    makeFolder(join(dataDir, "images"));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new ThawError("INVALID_ARGUMENT", {
      what: `The data directory ${dataDir} cannot be used`,
      why:
        code === "ENOTDIR" || code === "EEXIST" ? "A file is in its place or above it" : `It cannot be made: ${errorText(error)}`,
      fix: "Choose a directory with --data that this user may write to",
      cause: error,
    });
  }
}

/** Like `mkdir -p`. Node's own goes on for ever where a folder that exists takes none, as /proc does. */
function makeFolder(path: string): void {
  const make = (): void => void mkdirSync(path, { mode: 0o700 });
  try {
    make();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST" && statSync(path).isDirectory()) return;
    if (code !== "ENOENT" || existsSync(dirname(path))) throw error;
    makeFolder(dirname(path));
    make();
  }
}
