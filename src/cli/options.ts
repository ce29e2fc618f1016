/** Readers of option values. They throw commander's own error, so that a wrong value is a usage error (exit code 2). */
import { InvalidArgumentError } from "commander";
import { GIB, KIB, MIB, TIB } from "../base/units.js";

/** A whole number from `min` to `max`. */
export function wholeNumber(min: number, max = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (value >= min && value <= max) return value;
    throw new InvalidArgumentError(
      max === Number.MAX_SAFE_INTEGER
        ? `It must be a whole number of at least ${min}.`
        : `It must be a whole number from ${min} to ${max}.`,
    );
  };
}

/** Seconds, with or without a fraction and a trailing `s`. */
export function seconds(text: string): number {
  const found = /^(\d+(?:\.\d{1,3})?)s?$/.exec(text);
  if (found?.[1] === undefined) throw new InvalidArgumentError("It must be a number of seconds, such as 3 or 0.5.");
  return Number(found[1]);
}

const SIZE_UNITS: Readonly<Record<string, number>> = { "": 1, K: KIB, M: MIB, G: GIB, T: TIB };

/** Bytes: `2G`, `500M`, `1.5GiB`. Less than a megabyte is meant as something else: `512` without its unit. */
export function size(text: string): number {
  const found = /^(\d+(?:\.\d{1,3})?)([KMGT]?)(?:i?B)?$/i.exec(text);
  const unit = SIZE_UNITS[found?.[2]?.toUpperCase() ?? ""];
  const bytes = Math.round(Number(found?.[1]) * (unit ?? 1));
  if (found === null || bytes < MIB) throw new InvalidArgumentError("It must be a size of at least 1M, such as 500M or 2G.");
  return bytes;
}

/** Anything but nothing, which is mostly the value of a variable that is not set: a path would then be the working directory, an address every one. */
export function notEmpty(text: string): string {
  if (text === "") throw new InvalidArgumentError("It must not be empty.");
  return text;
}

/** One of a few words. */
export function word<T extends string>(words: readonly T[]): (text: string) => T {
  return (text) => {
    const found = words.find((known) => known === text);
    if (found === undefined) throw new InvalidArgumentError(`It must be one of ${words.join(", ")}.`);
    return found;
  };
}

/** One of a few words, or a whole number up to `max`. */
export function wordOrNumber<T extends string>(words: readonly T[], max: number): (text: string) => T | number {
  return (text) => {
    const found = words.find((known) => known === text);
    if (found !== undefined) return found;
    if (/^\d+$/.test(text) && Number(text) <= max) return Number(text);
    throw new InvalidArgumentError(`It must be ${words.join(", ")}, or a whole number up to ${max}.`);
  };
}

/** A repeatable `NAME=VALUE`; the last of a name wins. */
export function setting(text: string, before: Readonly<Record<string, string>> = {}): Record<string, string> {
  const at = text.indexOf("=");
  if (at < 1) throw new InvalidArgumentError("It must be NAME=VALUE.");
  return { ...before, [text.slice(0, at)]: text.slice(at + 1) };
}

/** A repeatable `LEVEL=COUNT`. */
export function levelCount<T extends string>(levels: readonly T[]) {
  return (text: string, before: Partial<Record<T, number>> = {}): Partial<Record<T, number>> => {
    const [name = "", count = ""] = text.split("=", 2);
    return { ...before, [word(levels)(name)]: wholeNumber(0, 1000)(count) };
  };
}
