import { describe, expect, it } from "vitest";
import type { LoadedImage } from "./images.js";
import { OpenImages } from "./open-images.js";
import type { Image } from "./types.js";

const imageOf = (dir: string): Image => ({ id: dir, dir }) as Image;

/** A shelf of two, whose images say when they are closed. */
function shelf() {
  const events: string[] = [];
  const open = async (dir: string): Promise<LoadedImage> => {
    events.push(`open ${dir}`);
    return { image: imageOf(dir), close: () => events.push(`close ${dir}`) } as unknown as LoadedImage;
  };
  return { events, open, images: new OpenImages(open, (loaded) => loaded.close(), 2) };
}

describe("open images", () => {
  it("close the one that was not used for longest, and open it again when it is used", async () => {
    const { events, open, images } = shelf();
    for (const dir of ["a", "b"]) images.add(await open(dir));
    await images.use(imageOf("a"));
    images.add(await open("c"));
    expect(events).toEqual(["open a", "open b", "open c", "close b"]);
    const both = await Promise.all([images.use(imageOf("b")), images.use(imageOf("b"))]);
    expect(both[0]).toBe(both[1]);
    expect(events.slice(4)).toEqual(["open b", "close a"]);
  });

  it("keep what a start or a pool is using", async () => {
    const { events, open, images } = shelf();
    const [a, b] = [await open("a"), await open("b")];
    images.add(a);
    images.add(b);
    const release = images.hold(a);
    images.holdForPool("pool", b);
    images.add(await open("c"));
    expect([events.filter((event) => event.startsWith("close")), images.size]).toEqual([[], 3]);
    release();
    images.holdForPool("pool", undefined);
    images.add(await open("d"));
    expect([events.filter((event) => event.startsWith("close")), images.size]).toEqual([["close a", "close b"], 2]);
  });

  it("are opened once, whoever asks for it at the same time and in whatever way", async () => {
    const { events, images } = shelf();
    images.remember(imageOf("a"));
    const all = await Promise.all([images.open("a"), images.use(imageOf("a")), images.open("a")]);
    expect(new Set(all).size).toBe(1);
    expect(images.get("a")).toBe(all[0]);
    expect(events).toEqual(["open a"]);
  });

  it("do not come back once they were removed, not even while they are being opened", async () => {
    const { events, images } = shelf();
    images.remember(imageOf("a"));
    const opening = images.use(imageOf("a"));
    images.remove("a");
    await expect(opening).rejects.toThrow("image a is not open");
    expect(events).toEqual(["open a", "close a"]);
    expect(() => images.use(imageOf("a"))).toThrow("image a is not open");
  });
});
