/** The page cache of a test's own files. */
import { execFileSync } from "node:child_process";

/** Drops what the page cache has of a file that is on disk (posix_fadvise, POSIX_FADV_DONTNEED). What somebody maps stays. */
export function forgetCached(path: string): void {
  execFileSync("dd", [`if=${path}`, "iflag=nocache", "count=0", "status=none"]);
}
