/** What is trusted of a page space while its bytes are written again, and afterwards. */
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeEach, expect, it } from "vitest";
import { imageFiles, type StoredImage } from "../image/index.js";
import { ImageCheck } from "./image-check.js";
import type { Keeper } from "./keeper.js";

const root = mkdtempSync(join(tmpdir(), "thaw-image-check-"));
const BYTES = Buffer.alloc(8192, 7);
const digestOf = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");
const keeper = {
  async helper([, , path = ""]: readonly string[]) {
    const bytes = readFileSync(path);
    return { stdout: Buffer.from(JSON.stringify({ ok: true, digest: digestOf(bytes), bytes: String(bytes.length) })) };
  },
} as unknown as Keeper;
const stored = {
  manifest: { id: "an image", facts: { pageSpaceBytes: BigInt(BYTES.length), digest: digestOf(BYTES) } },
} as unknown as StoredImage;

let check: ImageCheck;
let pages: string;

beforeEach(() => {
  const dir = mkdtempSync(join(root, "image-"));
  ({ pages } = imageFiles(dir));
  mkdirSync(dirname(pages), { recursive: true });
  writeFileSync(pages, BYTES);
  check = new ImageCheck(keeper, "extractor", stored, dir, false);
  check.trust();
});

afterAll(() => rmSync(root, { recursive: true }));

it("goes on being trusted while and after the same bytes are written again", async () => {
  await check.rewritten(async () => {
    writeFileSync(pages, BYTES);
    expect(check.verify()).toBeUndefined();
  });
  expect(check.verify()).toBeUndefined();
});

it("is not trusted any more when somebody else wrote to it at that time", async () => {
  await check.rewritten(async () => writeFileSync(pages, Buffer.alloc(8192, 8)));
  await expect(check.verify()).rejects.toMatchObject({ code: "IMAGE_DAMAGED" });
});

it("is looked at, too, when the writing failed half-way", async () => {
  const failed = check.rewritten(async () => {
    writeFileSync(pages, BYTES.subarray(1));
    throw new Error("the disk is full");
  });
  await expect(failed).rejects.toThrow("the disk is full");
  await expect(check.verify()).rejects.toMatchObject({ code: "IMAGE_DAMAGED" });
});

it("is not written at all when it changed since it was found whole", async () => {
  writeFileSync(pages, Buffer.alloc(8192, 8));
  let ran = false;
  await check.rewritten(async () => {
    ran = true;
  });
  expect(ran).toBe(false);
});
