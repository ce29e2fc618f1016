import { describe, expect, it } from "vitest";
import type { Logger } from "../base/log.js";
import { PAGES } from "../image/index.js";
import { parsedFacts } from "../image/testing.js";
import type { LoadedImage } from "./images.js";
import type { Keeper } from "./keeper.js";
import { Prefetcher } from "./prefetcher.js";

const samples = Array.from({ length: 8 }, (_, index) => ({ file: PAGES, offset: BigInt(index) * 8192n, bytes: 4096 }));
const files = [{ file: "/usr/bin/interpreter", offset: 0n, bytes: 4096 }];

/** An image in a page cache that lacks so many of its samples; each reading of the whole waits until it is let go. */
function scene(first: number, then = first) {
  let lacking = first;
  const readings: ((reply: string) => void)[] = [];
  const warned: object[] = [];
  const keeper = {
    async prefetchEncoded(payloads: readonly Buffer[], { awaited }: { awaited: boolean }) {
      // The files' ranges are asked for beside the reading; nobody waits for those.
      expect(awaited).toBe(payloads.length > 0);
      const pages = payloads.length === 0 ? 0 : lacking;
      if (awaited) lacking = then;
      return { us: 1, pages };
    },
    prefetch: async () => ({ us: 1, pages: 0 }),
    helper: (argv: string[]) =>
      new Promise((resolve) => {
        expect(argv).toEqual(["extractor", "fetch", "/images/image/pages"]);
        readings.push((reply) => resolve({ stdout: Buffer.from(`${reply}\n`) }));
      }),
  } as unknown as Keeper;
  const loaded = {
    image: { id: "image", dir: "/images/image", spec: {} },
    facts: parsedFacts(),
    pagesFile: 1,
    samples: () => samples,
    prefetchFileRanges: () => files,
  } as unknown as LoadedImage;
  const log = { warn: (fields: object) => warned.push(fields) } as unknown as Logger;
  return { prefetcher: new Prefetcher(keeper, "extractor", "/runtime", log), loaded, readings, warned };
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe("an image whose starts read most of it", () => {
  it("is read whole where memory lacks more than half of it, once for all who wait, and then tells what was lacking", async () => {
    const { prefetcher, loaded, readings } = scene(5);
    const starts = [prefetcher.startWhole(loaded), prefetcher.startWhole(loaded)];
    await turn();
    expect(readings.length).toBe(1);
    readings[0]?.('{"ok":true,"pages":[900],"lacked":800}');
    expect(await Promise.all(starts)).toEqual([800, 800]);
    // It may have left memory again since.
    const later = prefetcher.startWhole(loaded);
    await turn();
    readings[1]?.('{"ok":true,"pages":[900],"lacked":0}');
    expect(await later).toBe(0);
  });

  it("is waited for, too, by who comes when half of it has been read", async () => {
    const { prefetcher, loaded, readings } = scene(8, 2);
    const starts = [prefetcher.startWhole(loaded)];
    await turn();
    starts.push(prefetcher.startWhole(loaded));
    await turn();
    expect(readings.length).toBe(1);
    readings[0]?.('{"ok":true,"pages":[900],"lacked":800}');
    expect(await Promise.all(starts)).toEqual([800, 800]);
    expect(await prefetcher.startWhole(loaded)).toBeUndefined();
  });

  it("is left to its faults where half of it is there, and where nobody can say", async () => {
    for (const lacking of [4, 0, -1]) {
      const { prefetcher, loaded, readings } = scene(lacking);
      expect([await prefetcher.startWhole(loaded), readings.length]).toEqual([undefined, 0]);
    }
  });

  it("that cannot be read is logged with the reason, and its start goes on", async () => {
    const { prefetcher, loaded, readings, warned } = scene(8);
    const start = prefetcher.startWhole(loaded);
    await turn();
    readings[0]?.('{"ok":false,"code":"failed","why":"cannot read /images/image/pages: Input/output error"}');
    expect(await start).toBe(-1);
    expect(warned).toEqual([{ image: "image", why: "cannot read /images/image/pages: Input/output error" }]);
  });
});
