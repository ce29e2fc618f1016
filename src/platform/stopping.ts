import { ThawError } from "../base/errors.js";

/** SHUTTING_DOWN: `what` was not done, and can be when the server is there again. */
export function serverStops(what: string): ThawError {
  return new ThawError("SHUTTING_DOWN", {
    what,
    why: "the server is stopping",
    fix: "Try again when it has been started again",
  });
}
