/** Which kernel this is: for tests of what older ones do not have, which are skipped by name there. */
import { release } from "node:os";

/** Whether the kernel is older than that version. */
export function olderThan(major: number, minor: number): boolean {
  const [ours = 0, oursMinor = 0] = release().split(".").map(Number);
  return ours < major || (ours === major && oursMinor < minor);
}
