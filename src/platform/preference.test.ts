import { describe, expect, it } from "vitest";
import { parsePreference } from "./preference.js";

describe("a preferred start is refused", () => {
  const refusals: [string, string][] = [
    [
      "warm",
      'The preferred start "warm" cannot be used. "warm" is not a kind of start. Use one of boot, thaw, parked, reuse, wake',
    ],
    ["wake;loader=lazy", "a loader makes no sense with wake. Use it with thaw"],
    ["wake;husk=fresh", "a husk makes no sense with wake. Use it with thaw or boot"],
    ["", '"" is not a kind of start'],
    [
      "thaw;loader=fast",
      '"fast" is not a loader. Use one of lazy, lazy-4k, eager, splice, reap-lazy, reap-parallel, reap-file, reap',
    ],
    ["boot;loader=lazy", "a loader makes no sense with boot. Use it with thaw"],
    ["thaw;husk=old", '"old" is not a way to come by a husk. Use one of pooled, fresh'],
    ["reuse;husk=fresh", "a husk makes no sense with reuse. Use it with thaw or boot"],
    ["thaw;quickly", '"quickly" is not an option. Use loader=…, husk=…, generation=… or dispose'],
    ["thaw;generation=hot", '"hot" is not a generation. Use a whole number; `thaw image ls NAME` lists those that exist'],
    ["thaw;generation=-1", '"-1" is not a generation'],
    ["thaw;generation", '"" is not a generation'],
    ["parked;generation=1", "a generation makes no sense with parked. Use it with thaw"],
  ];
  for (const [text, sentence] of refusals) it(`as "${text}"`, () => expect(() => parsePreference(text)).toThrow(sentence));
});

describe("a preferred start is read", () => {
  it("in every form", () => {
    expect(parsePreference("boot")).toEqual({ prefer: { kind: "boot" }, dispose: false });
    expect(parsePreference("reuse;dispose")).toEqual({ prefer: { kind: "reuse" }, dispose: true });
    expect(parsePreference("wake;dispose")).toEqual({ prefer: { kind: "wake" }, dispose: true });
    expect(parsePreference("thaw;generation=0")).toEqual({ prefer: { kind: "thaw", generation: 0 }, dispose: false });
    expect(parsePreference("parked")).toEqual({ prefer: { kind: "parked" }, dispose: false });
    expect(parsePreference("thaw; loader=eager ;dispose; husk=fresh")).toEqual({
      prefer: { kind: "thaw", loader: "eager", husk: "fresh" },
      dispose: true,
    });
  });
});
