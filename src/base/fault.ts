/**
 * Named places where a test may kill the server, to see that nothing is lost and nothing is left behind.
 * `THAW_FAULT=freeze-image-synced thaw serve …` makes the server send SIGKILL to itself there: no handler
 * runs, no buffer is flushed, exactly as with a power cut of the process.
 */
export const FAULT_POINTS = {
  "deploy-code-unpacked": "the code lies in a temporary directory, not yet at its final place",
  "deploy-code-renamed": "the code is at its final place, the database does not know the function",
  "deploy-recorded": "the function is in the database, the client has no answer yet",
  "freeze-prepared": "the before-snapshot hooks ran, the process has not been stopped",
  "freeze-live-ready": "most of the memory of a live instance is copied, requests are not held yet",
  "freeze-live-held": "its before-snapshot hooks ran, requests are held, it has not been stopped",
  "freeze-live-released": "all of its memory is copied, requests go on, nothing is stored",
  "freeze-extracted": "the pages are copied, the process runs again, there is no manifest",
  "freeze-image-written": "the temporary directory is complete, not yet flushed to disk",
  "freeze-image-synced": "the temporary directory is flushed, not yet renamed",
  "freeze-image-renamed": "the image is at its final place, the database does not know it",
  "freeze-recorded": "the database knows the image, the older one has not been removed",
  "thaw-husk-taken": "a husk left its pool, no program runs in it",
  "thaw-stage-sent": "the program was handed to the keeper, nothing came back",
  "thaw-request-sent": "the request is in the control socket, the function has not answered",
  "hibernate-prepared": "the before-snapshot hooks ran for a hibernation, the process has not been stopped",
  "hibernate-file-made": "the file for its memory is open, nothing is in it",
  "hibernate-deflated": "its memory is in the file, nobody was told",
  "wake-request-sent": "the request is in the control socket of a hibernated instance, which has not answered",
  "remove-recorded": "the function left the database, its files are still there",
} as const;

/** Name of a place in {@link FAULT_POINTS}. */
export type FaultPoint = keyof typeof FAULT_POINTS;

/** Looked up once: from cold caches each look at the environment costs a start some microseconds. */
const given = process.env["THAW_FAULT"] !== undefined;

/** Kills this process with SIGKILL when the environment's THAW_FAULT, which it has been given, is `name`; otherwise does nothing. */
export function faultPoint(name: FaultPoint): void {
  if (given && process.env["THAW_FAULT"] === name) process.kill(process.pid, "SIGKILL");
}
