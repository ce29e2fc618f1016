import { PassThrough, Readable } from "node:stream";
import { describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { errorJson, formatError, formatPairs, formatTable, Interrupted, readUpTo } from "./io.js";

describe("errors for people", () => {
  it("say what, why and fix on lines of their own", () => {
    const error = new ThawError("FUNCTION_NOT_FOUND", { what: "no function", why: "never deployed", fix: "deploy it" });
    expect(formatError(error)).toBe("error: no function\n  why: never deployed\n  fix: deploy it\n");
  });

  it("leave out what is not known", () => {
    expect(formatError(new ThawError("TIMEOUT", { what: "too late" }))).toBe("error: too late\n");
    expect(formatError(new Error("plain"))).toBe("error: plain\n");
  });

  it("keep their lines, and nothing that a function put into them to rewrite the terminal", () => {
    const why = "Error: \u001b[2Jgone\u0007\n    at index.js:1";
    expect(formatError(new ThawError("INIT_FAILED", { what: "not loaded", why }))).toBe(
      "error: not loaded\n  why: Error:  [2Jgone \n    at index.js:1\n",
    );
    expect(formatError(new Error("\u001b[31mred"))).toBe("error:  [31mred\n");
  });
});

it("errors for machines are one JSON line with the code", () => {
  expect(JSON.parse(errorJson(new ThawError("TIMEOUT", { what: "too late" })))).toEqual({
    error: { code: "TIMEOUT", what: "too late", details: {} },
  });
});

it("tables are aligned and have no space at line ends", () => {
  expect(
    formatTable(
      ["NAME", "STATE"],
      [
        ["a", "ready"],
        ["longer", ""],
      ],
    ),
  ).toBe("NAME    STATE\na       ready\nlonger\n");
});

it("pairs have their values in one column", () => {
  expect(
    formatPairs([
      ["name", "x"],
      ["generation", "1"],
    ]),
  ).toBe("name        x\ngeneration  1\n");
});

it("control characters of a name do not reach the terminal", () => {
  expect(formatTable(["NAME"], [["a\u001b[2Jb"]])).toBe("NAME\na [2Jb\n");
});

describe("a stream that is read", () => {
  const { signal } = new AbortController();

  it("gives all that it holds", async () => {
    expect((await readUpTo(Readable.from([Buffer.from("a"), Buffer.from("bc")]), 3, signal)).toString()).toBe("abc");
  });

  it("is left when it has more than is wanted: some never end", async () => {
    const endless = new Readable({
      read() {
        this.push(Buffer.alloc(1000));
      },
    });
    expect((await readUpTo(endless, 2500, signal)).length).toBe(3000);
    expect(endless.destroyed).toBe(true);
  });

  it("is left when the command is interrupted", async () => {
    const stop = new AbortController();
    const reading = readUpTo(new PassThrough(), 10, stop.signal);
    stop.abort();
    await expect(reading).rejects.toBeInstanceOf(Interrupted);
  });
});
