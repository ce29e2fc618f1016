import { ThawError } from "../base/errors.js";

/** SHUTTING_DOWN: `what` was not done, and can be when the server is there again. */
export function serverStops(what: string): ThawError {
  return new ThawError("SHUTTING_DOWN", {
    what,
    why: "the server is stopping",
    fix: "Try again when it has been started again",
  });
}

/** Of a request that still ran when the server's time to stop was over: not the function's doing, and worth another try. */
export function cutShort({ name }: { readonly name: string }, drainMs: number): ThawError {
  return new ThawError("SHUTTING_DOWN", {
    what: `Function "${name}" was ended in the middle of the request`,
    why: `the server is stopping, and waits ${drainMs / 1000} s for requests that run`,
    fix: "Try again when it has been started again",
  });
}
