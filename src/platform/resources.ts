/** Turns the kernel's "there is no more" into an error that says what ran out. */
import { ThawError } from "../base/errors.js";

const EXHAUSTED: Readonly<Record<string, { why: string; fix: string }>> = {
  ENOSPC: { why: "the disk is full", fix: "Free some space in the data directory's file system and try again" },
  EDQUOT: { why: "the disk quota is used up", fix: "Free some space, or raise the quota, and try again" },
  EMFILE: {
    why: "this process has as many descriptors open as it may",
    fix: "Raise the limit (ulimit -n) and start the server again",
  },
  ENFILE: { why: "this machine has as many descriptors open as it may", fix: "Close other programs, or raise fs.file-max" },
  ENOMEM: { why: "memory ran out", fix: "End other programs, or use fewer instances" },
  EROFS: { why: "the file system is read-only", fix: "Mount it read-write, or use another data directory" },
};

/** RESOURCE_EXHAUSTED when `error` is one of those conditions; else `error` itself. */
export function resourceError(error: unknown, what: string): unknown {
  const found = EXHAUSTED[(error as NodeJS.ErrnoException | undefined)?.code ?? ""];
  if (found === undefined || error instanceof ThawError) return error;
  return new ThawError("RESOURCE_EXHAUSTED", { what, ...found, cause: error });
}
