import { describe, expect, it } from "vitest";
import { parseFunctionRef } from "./function-ref.js";

describe("the function in an invoke path", () => {
  it.each([
    ["hello", "hello", "$LATEST"],
    ["hello:7", "hello", "7"],
    ["hello:$LATEST", "hello", "$LATEST"],
    ["hello:live", "hello", "live"],
    ["function:hello", "hello", "$LATEST"],
    ["123456789012:function:hello", "hello", "$LATEST"],
    ["123456789012:function:hello:live", "hello", "live"],
    ["us-east-1:123456789012:function:hello", "hello", "$LATEST"],
    ["arn:aws:lambda:us-east-1:123456789012:function:hello", "hello", "$LATEST"],
    ["arn:aws:lambda:us-east-1:123456789012:function:hello:live", "hello", "live"],
    ["arn:aws-us-gov:lambda:us-gov-west-1:123456789012:function:a_b-c:3", "a_b-c", "3"],
    ["arn:aws:lambda:local:000000000000:function:hello", "hello", "$LATEST"],
  ])("%s is function %s, qualifier %s", (reference, name, qualifier) => {
    expect(parseFunctionRef(reference)).toMatchObject({ name, qualifier });
  });

  it("takes the qualifier from the query", () => {
    expect(parseFunctionRef("hello", "live")).toMatchObject({ name: "hello", qualifier: "live" });
    expect(parseFunctionRef("hello:live", "live")).toMatchObject({ name: "hello", qualifier: "live" });
  });

  it.each([
    ["hello", undefined, undefined],
    ["hello", "$LATEST", { qualifier: "$LATEST" }],
    ["123456789012:function:hello:live", undefined, { qualifier: "live" }],
    [
      "arn:aws:lambda:eu-west-1:123456789012:function:hello",
      undefined,
      { arn: "arn:aws:lambda:eu-west-1:123456789012:function:hello" },
    ],
    [
      "arn:aws:lambda:eu-west-1:123456789012:function:hello:live",
      "live",
      { arn: "arn:aws:lambda:eu-west-1:123456789012:function:hello", qualifier: "live" },
    ],
  ])("%s with qualifier %s tells the function what it was named by", (reference, query, invokedAs) => {
    expect(parseFunctionRef(reference, query).invokedAs).toEqual(invokedAs);
  });

  it("refuses two qualifiers that differ, naming both", () => {
    expect(() => parseFunctionRef("hello:1", "2")).toThrow('The name says qualifier "1" and the query says "2"');
  });

  it.each(["", "he llo", "../etc/passwd", "a:b:c:d", "x".repeat(65), "hello:", "arn:aws:s3:::bucket", "é"])(
    "refuses %j",
    (reference) => {
      expect(() => parseFunctionRef(reference)).toThrow("cannot be read");
    },
  );

  it("refuses a qualifier that is neither version nor alias", () => {
    expect(() => parseFunctionRef("hello", "a b")).toThrow('Qualifier "a b" is not a version or an alias');
  });

  it("does not repeat a long name in full", () => {
    expect(() => parseFunctionRef("!".repeat(5000))).toThrow(/^Function name "!{80}…"/);
  });
});
