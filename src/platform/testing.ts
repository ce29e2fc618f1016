/** For tests: a platform over the fake engine in a directory of its own, and packages to deploy. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Zippable, zipSync } from "fflate";
import { FakeEngine, type FakeEngineOptions } from "../engine/fake.js";
import type { HeatDecider, HeatPolicy, ImagePoint } from "./heat-policy.js";
import { openPlatform } from "./platform.js";
import type { Platform, PlatformOptions } from "./types.js";
import { type ReceivedPackage, Uploads } from "./uploads.js";

/** A running platform of a test. */
export interface TestBed {
  readonly dataDir: string;
  readonly engine: FakeEngine;
  readonly platform: Platform;
  /** Closes this platform and opens another over a fresh engine, in the same directory. */
  restart(engineOptions?: FakeEngineOptions): Promise<TestBed>;
  /** Closes platform and engine, and removes the directory. */
  close(): Promise<void>;
}

/** Opens one. */
export async function openTestBed(
  options: Partial<PlatformOptions> = {},
  engineOptions: FakeEngineOptions = {},
): Promise<TestBed> {
  const root = await mkdtemp(join(tmpdir(), "thaw-platform-"));
  return open(root, options, engineOptions);
}

async function open(root: string, options: Partial<PlatformOptions>, engineOptions: FakeEngineOptions): Promise<TestBed> {
  const dataDir = join(root, "data");
  const engine = new FakeEngine(engineOptions);
  const platform = await openPlatform({ dataDir, engine, drainMs: 300, ...options });
  const end = async (): Promise<void> => {
    await platform.close();
    await engine.close();
  };
  return {
    dataDir,
    engine,
    platform,
    async restart(nextEngineOptions = engineOptions) {
      await end();
      return open(root, options, nextEngineOptions);
    },
    async close() {
      await end();
      await rm(root, { recursive: true, force: true });
    },
  };
}

/** A package, whose bytes depend on nothing else. Values are contents, or `[contents, {os, attrs}]` for permission bits and links. */
export function zipOf(files: Readonly<Record<string, string | [string, { os: number; attrs: number }]>> = HELLO): Uint8Array {
  const encoder = new TextEncoder();
  const zippable: Zippable = {};
  for (const [path, content] of Object.entries(files)) {
    zippable[path] = typeof content === "string" ? encoder.encode(content) : [encoder.encode(content[0]), content[1]];
  }
  // Two packages of the same files are the same package, even if the clock of zip (2 s) went on between them.
  return zipSync(zippable, { mtime: new Date(1980, 0, 1) });
}

/** A package as it is when it has come whole. Its file has no name, and goes with the process that does not close it. */
export const received = (zip: Uint8Array): Promise<ReceivedPackage> => new Uploads(tmpdir()).receive([zip]);

/** Attributes of a symbolic link made on Unix. */
export const LINK = { os: 3, attrs: (0o120777 << 16) >>> 0 };
/** Attributes of an executable file made on Unix. */
export const EXECUTABLE = { os: 3, attrs: (0o100755 << 16) >>> 0 };

const HELLO = { "index.mjs": "export const handler = async (event) => ({ hello: event.name });\n" };

/** What a test's policy of heat was told, and what it shall answer. */
export interface PointsPolicy extends HeatPolicy {
  /** `generation request` of every answer. */
  readonly answers: string[];
  readonly begun: () => number;
  /** Replaces the choice, which is the hottest image otherwise. */
  choose: ((images: readonly ImagePoint[]) => ImagePoint) | undefined;
  surplus: (images: readonly ImagePoint[]) => readonly ImagePoint[];
}

/** A policy without any judgement: the hottest image, and the next of `points`. */
export function pointsPolicy(...points: readonly number[]): PointsPolicy {
  const answers: string[] = [];
  let begun = 0;
  const policy: PointsPolicy = {
    name: "points",
    answers,
    begun: () => begun,
    choose: undefined,
    surplus: () => [],
    begin: (): HeatDecider => {
      begun += 1;
      return {
        choose: (images) => policy.choose?.(images) ?? images.reduce((hot, image) => (image.heat > hot.heat ? image : hot)),
        freezeAt: (images) => points.find((point) => images.every(({ heat }) => heat < point)),
        answered: ({ generation }, request) => answers.push(`${generation} ${request}`),
        surplus: (images) => policy.surplus(images),
      };
    },
  };
  return policy;
}

/** Waits for what happens in the background. */
export async function until(condition: () => boolean): Promise<void> {
  for (let tries = 0; !condition(); tries++) {
    if (tries >= 6_000) throw new Error("what was waited for did not happen within half a minute");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
