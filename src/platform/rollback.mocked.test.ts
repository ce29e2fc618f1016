import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { openTestBed, type TestBed, until, zipOf } from "./testing.js";
import type { ReceivedPackage } from "./types.js";

/** Called when what a package was unpacked to has been tidied up, which takes as long as it has files, before the deploy goes on. */
const tidied = vi.hoisted(() => ({ then: async (): Promise<void> => undefined }));
vi.mock("./code.js", async (original) => {
  const real = await original<typeof import("./code.js")>();
  return {
    ...real,
    async stageCode(zip: ReceivedPackage, finalDir: string) {
      const staged = await real.stageCode(zip, finalDir);
      const discard = async (): Promise<void> => {
        await staged.discard();
        await tidied.then();
      };
      return { ...staged, discard };
    },
  };
});

const GOOD = zipOf({ "index.mjs": "export const handler = () => 'good';\n" });
const BAD = zipOf({ "index.mjs": "export const handler = () => 'bad';\n" });
const WORSE = zipOf({ "index.mjs": "export const handler = () => 'worse';\n" });

let bed: TestBed;
afterEach(async () => {
  tidied.then = async () => undefined;
  await bed.close();
});

/** The folder of the code that requests get. */
function codeDir(): string {
  const { codeSha256 } = bed.platform.get("a");
  return join(bed.dataDir, "functions", "a", Buffer.from(codeSha256, "base64").toString("hex"));
}

/** A request of the version of now that runs until it is released. */
async function hanging(): Promise<() => Promise<void>> {
  let release = (): void => undefined;
  let begun = false;
  bed.engine.handler = () =>
    new Promise<void>((resolve) => {
      begun = true;
      release = resolve;
    });
  const request = bed.platform.invoke("a", "");
  await until(() => begun);
  bed.engine.handler = () => "answered";
  return async () => {
    release();
    expect((await request).result.functionError).toBeUndefined();
  };
}

describe("going back to code of which a request still runs", () => {
  it("keeps that code, though the request ends in the middle of the deploy", async () => {
    bed = await openTestBed();
    await bed.platform.deploy({ name: "a", zip: GOOD });
    const release = await hanging();
    await bed.platform.deploy({ name: "a", zip: BAD, update: true });
    let inTheMiddle = false;
    tidied.then = async () => {
      await release();
      await new Promise((resolve) => setTimeout(resolve, 100));
      inTheMiddle = true;
    };
    await bed.platform.deploy({ name: "a", zip: GOOD, update: true });
    tidied.then = async () => undefined;
    expect(inTheMiddle).toBe(true);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(readdirSync(codeDir())).toEqual(["index.mjs"]);
    await until(() => readdirSync(join(bed.dataDir, "functions", "a")).length === 1);
  });

  it("and on to other code keeps it until that request has ended, too", async () => {
    bed = await openTestBed();
    await bed.platform.deploy({ name: "a", zip: GOOD });
    const dir = codeDir();
    const release = await hanging();
    for (const zip of [BAD, GOOD, WORSE]) await bed.platform.deploy({ name: "a", zip, update: true });
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(existsSync(join(dir, "index.mjs"))).toBe(true);
    await release();
    await until(() => !existsSync(dir));
    expect(readdirSync(codeDir())).toEqual(["index.mjs"]);
  });
});
