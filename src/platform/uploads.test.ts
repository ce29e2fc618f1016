import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type ReceivedPackage, Uploads } from "./uploads.js";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "thaw-uploads-"));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

/** `count` pieces, and then `end` is called. */
async function* pieces(piece: Uint8Array, count: number, end: () => void = () => undefined): AsyncGenerator<Uint8Array> {
  for (let index = 0; index < count; index++) yield piece;
  end();
}

const openFiles = async (): Promise<number> => (await readdir("/proc/self/fd")).length;

describe("a package that is received", () => {
  it("has its bytes, from wherever they are read, its hash, and no name in the meantime", async () => {
    const uploads = new Uploads(dir);
    const piece = Buffer.from(Array.from({ length: 99_991 }, (_, index) => index % 251));
    let names: string[] | undefined;
    const source = async function* (): AsyncGenerator<Uint8Array> {
      for (let index = 0; index < 10; index++) {
        names = await readdir(dir);
        yield piece;
      }
    };
    const received = await uploads.receive(source());
    expect(names).toEqual([]);
    const whole = Buffer.concat(Array.from({ length: 10 }, () => piece));
    expect(received.bytes).toBe(whole.length);
    for (const [at, length] of [
      [0, 10],
      [5, 300_000],
      [300_000, 4],
      [299_000, 4],
      [whole.length - 3, 10],
      [0, whole.length + 1],
      [whole.length + 5, 10],
    ] as const)
      expect((await received.read(at, length)).equals(whole.subarray(at, at + length)), `${length} at ${at}`).toBe(true);
    await received.close();
    await received.close();
  });

  it("has the hash that Lambda calls CodeSha256", async () => {
    const { hash, close } = await new Uploads(dir).receive([Buffer.from("a"), Buffer.from("bc")]);
    await close();
    expect(hash.base64).toBe("ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
    expect(hash.hex).toMatch(/^ba7816bf/);
  });

  it("and fails, or has no end, leaves no file open and none there", async () => {
    const uploads = new Uploads(dir, { packageBytes: 1_000_000, allBytes: 10_000_000 });
    const before = await openFiles();
    const broken = (): void => {
      throw new Error("the client went away");
    };
    await expect(uploads.receive(pieces(Buffer.alloc(300_000), 2, broken))).rejects.toThrow("the client went away");
    await expect(uploads.receive(pieces(Buffer.alloc(300_000), Number.POSITIVE_INFINITY))).rejects.toMatchObject({
      code: "PAYLOAD_TOO_LARGE",
      why: "Packed it has more than 977 KiB, and unpacked it may have 250 MiB",
    });
    expect([await openFiles(), await readdir(dir)]).toEqual([before, []]);
  });
});

describe("packages together", () => {
  it("are refused beyond what they may hold, until one is closed", async () => {
    const uploads = new Uploads(dir, { packageBytes: 1_000_000, allBytes: 2_000_000 });
    const full = (): Promise<ReceivedPackage> => uploads.receive(pieces(Buffer.alloc(250_000), 4));
    const [first, second] = await Promise.all([full(), full()]);
    await expect(uploads.receive([Buffer.from("x")])).rejects.toMatchObject({
      code: "RESOURCE_EXHAUSTED",
      why: "the server holds 1.9 MiB of packages that are being deployed, which is the limit",
    });
    await first.close();
    await (await full()).close();
    await second.close();
  });
});
