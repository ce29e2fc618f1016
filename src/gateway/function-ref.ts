/**
 * What stands between `functions/` and `/invocations` in a path: a name, a partial ARN, or a whole one, each with or
 * without a qualifier. Region and account are accepted and not compared: this server is every region and account.
 */
import { ThawError } from "../base/errors.js";
import { LATEST } from "../platform/types.js";

/** A function, and the version or alias that was asked for. */
export interface FunctionRef {
  readonly name: string;
  readonly qualifier: string;
  /** What the function is told to have been invoked by, where a whole ARN or a qualifier was given. */
  readonly invokedAs?: { readonly arn?: string; readonly qualifier?: string };
}

// Lambda's own pattern, with capturing groups; the region is any word, so that "local" passes too.
const REFERENCE =
  /^(?:arn:aws[a-zA-Z-]*:lambda:)?(?:[a-z][a-z0-9-]*:(?=\d{12}:))?(?:\d{12}:)?(?:function:)?([a-zA-Z0-9-_]{1,64})(?::(\$LATEST|[a-zA-Z0-9-_]{1,128}))?$/;
const QUALIFIER = /^(?:\$LATEST|[a-zA-Z0-9-_]{1,128})$/;
const PLAIN = /^[a-zA-Z0-9-_]{1,64}$/;

/** Reads a reference, already percent-decoded, and the `Qualifier` of the query. INVALID_ARGUMENT when they make no sense. */
export function parseFunctionRef(reference: string, query?: string): FunctionRef {
  if (query !== undefined && !QUALIFIER.test(query)) {
    throw new ThawError("INVALID_ARGUMENT", {
      what: `Qualifier ${quoted(query)} is not a version or an alias`,
      fix: "Use $LATEST, a version number, or letters, digits, - and _",
    });
  }
  if (PLAIN.test(reference))
    return { name: reference, qualifier: query ?? LATEST, ...(query === undefined ? {} : { invokedAs: { qualifier: query } }) };
  const found = REFERENCE.exec(reference);
  if (found?.[1] === undefined) {
    throw new ThawError("INVALID_ARGUMENT", {
      what: `Function name ${quoted(reference)} cannot be read`,
      why: "A name has 1 to 64 letters, digits, - and _; an ARN ends in :function:NAME or :function:NAME:QUALIFIER",
      fix: "`thaw ls` lists the functions that exist",
    });
  }
  if (query !== undefined && found[2] !== undefined && query !== found[2]) {
    throw new ThawError("INVALID_ARGUMENT", {
      what: `The name says qualifier ${quoted(found[2])} and the query says ${quoted(query)}`,
      fix: "Give one of them only",
    });
  }
  const given = query ?? found[2];
  const arn = reference.startsWith("arn:")
    ? reference.slice(0, found[2] === undefined ? undefined : -found[2].length - 1)
    : undefined;
  const invokedAs = { ...(arn === undefined ? {} : { arn }), ...(given === undefined ? {} : { qualifier: given }) };
  return { name: found[1], qualifier: given ?? LATEST, ...(Object.keys(invokedAs).length === 0 ? {} : { invokedAs }) };
}

/** A value from outside, short enough and plain enough to be repeated in an error. */
export function quoted(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}
