import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { JsonCheck } from "./json-check.js";

/** As JSON.parse says. */
function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function check(bytes: Buffer, pieceLength = bytes.length): boolean {
  const json = new JsonCheck();
  for (let from = 0; from < bytes.length; from += pieceLength)
    if (!json.write(bytes.subarray(from, from + pieceLength))) return false;
  return json.whole;
}

describe("the check of a JSON text", () => {
  it("accepts every JSON text, in whatever pieces it comes", () => {
    const spaced = fc
      .tuple(fc.json(), fc.constantFrom("", " ", "\n\t", "\r\n "))
      .map(([text, space]) => `${space}${text}${space}`);
    const pretty = fc.jsonValue().map((value) => JSON.stringify(value, undefined, 2));
    fc.assert(
      fc.property(fc.oneof(spaced, pretty), fc.integer({ min: 1, max: 9 }), (text, pieceLength) => {
        expect(check(Buffer.from(text), pieceLength)).toBe(true);
      }),
    );
  });

  it("accepts what JSON.parse accepts, and nothing else: texts of the characters that mean something", () => {
    const unit = fc.constantFrom(...'{}[]:,"\\/bfnrtu0123456789.eE+- \n\t\u0000x', "true", "false", "null", '"a"', "[]", "{}");
    fc.assert(
      fc.property(fc.string({ unit, maxLength: 12 }), (text) => {
        expect(check(Buffer.from(text)), text).toBe(isJson(text));
      }),
      { numRuns: 20_000 },
    );
  });

  it("accepts what JSON.parse accepts, and nothing else: JSON texts with a character changed, taken out or put in", () => {
    const unit = fc.constantFrom(...'{}[]:,"\\0123456789.eE+- \u0007x', "");
    fc.assert(
      fc.property(fc.json(), fc.nat(), fc.nat({ max: 1 }), unit, (text, where, removed, put) => {
        const at = where % (text.length + 1);
        const changed = `${text.slice(0, at)}${put}${text.slice(at + removed)}`;
        expect(check(Buffer.from(changed)), changed).toBe(isJson(changed));
      }),
      { numRuns: 20_000 },
    );
  });

  it.each([
    "",
    " ",
    "-",
    "01",
    "1.",
    ".5",
    "1e",
    "1e+",
    "+1",
    "[1,]",
    "{,}",
    '{"a":1,}',
    '"\\u12g4"',
    '"\n"',
    "[1 2]",
    "nul",
    "nulll",
    "\u00a01",
  ])("refuses %j", (text) => {
    expect(isJson(text)).toBe(false);
    expect(check(Buffer.from(text))).toBe(false);
  });

  it("takes millions of arrays in one another", () => {
    const depth = 1_000_000;
    const text = Buffer.concat([Buffer.alloc(depth, "["), Buffer.alloc(depth, "]")]);
    expect(check(text)).toBe(true);
    expect(check(text.subarray(1))).toBe(false);
    expect(check(text.subarray(0, -1))).toBe(false);
  });

  it("says where the text goes wrong", () => {
    const json = new JsonCheck();
    expect(json.write(Buffer.from('{"a":'))).toBe(true);
    expect(json.write(Buffer.from("1;2}"))).toBe(false);
    expect(json.bytes).toBe(6);
  });
});
