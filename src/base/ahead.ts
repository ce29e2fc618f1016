import { randomUUID } from "node:crypto";

/**
 * Values that are drawn many at a time, ahead of whoever needs one: from cold caches a single one of them may take longer than all else that the server does
 * in a request's way. Each is handed out once, and is not kept.
 */
export function drawnAhead<Value>(draw: () => Value[]): () => Value {
  let ahead: Value[] = [];
  const more = (): void => {
    if (ahead.length === 0) ahead = draw();
  };
  return () => {
    more();
    const value = ahead.pop() as Value;
    // Behind whoever takes the last one.
    if (ahead.length === 0) setImmediate(more);
    return value;
  };
}

const UUIDS_AT_ONCE = 32;

/** A random UUID (version 4), of a request for example. */
export const takeUuid = drawnAhead(() => Array.from({ length: UUIDS_AT_ONCE }, () => randomUUID()));
