import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ms, renderTable, significant, type Table, wantsColour } from "./table.js";

const table: Table = {
  title: "starts",
  columns: [{ title: "start" }, { title: "ms", align: "right" }],
  rows: [{ heading: "hello" }, ["boot", "130"], ["thaw", { text: "1.84", tone: "good" }]],
  notes: ["done"],
};

describe("renderTable", () => {
  it("aligns columns and draws headings and rules", () => {
    expect(renderTable(table, false)).toBe(
      ["starts", "", "start    ms", "───────────", "hello", "boot    130", "thaw   1.84", "───────────", "done", ""].join("\n"),
    );
  });

  it("has the same text with colour, and no escape without", () => {
    const plain = renderTable(table, false);
    const coloured = renderTable(table, true);
    expect(plain).not.toContain("\u001b");
    expect(coloured).toContain("\u001b[32m1.84");
    // biome-ignore lint/suspicious/noControlCharactersInRegex: escapes are what is removed here
    expect(coloured.replaceAll(/\u001b\[\d*m/g, "")).toBe(plain);
  });

  it("keeps right-aligned cells flush whatever they hold", () => {
    const word = fc.stringMatching(/^[a-zµ–]{1,12}$/);
    fc.assert(
      fc.property(fc.array(fc.tuple(word, word), { minLength: 1, maxLength: 8 }), (rows) => {
        const text = renderTable({ ...table, rows }, false)
          .split("\n")
          .slice(4, 4 + rows.length);
        expect(new Set(text.map((line) => [...line].length)).size).toBe(1);
      }),
    );
  });
});

describe("numbers", () => {
  it("show three digits, and a dash for what was not measured", () => {
    expect([1840, 130_400, 214, 28_000, 0].map(ms)).toEqual(["1.84", "130", "0.214", "28.0", "0.00"]);
    expect(ms(Number.NaN)).toBe("–");
    expect(significant(12_345.6)).toBe("12,346");
    expect([9.999, 99.99, 0.9999].map(significant)).toEqual(["10.0", "100", "1.00"]);
  });
});

describe("colour", () => {
  it("is for terminals whose user did not refuse it", () => {
    expect(wantsColour({ isTTY: true }, {})).toBe(true);
    expect(wantsColour({}, {})).toBe(false);
    expect(wantsColour({ isTTY: true }, { NO_COLOR: "1" })).toBe(false);
  });
});
