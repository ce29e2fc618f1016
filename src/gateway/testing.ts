/** For tests of gateway and cli: a platform over the fake engine in a directory of its own. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { FastifyInstance } from "fastify";
import { zipSync } from "fflate";
import { FakeEngine, type FakeEngineOptions } from "../engine/fake.js";
import { openPlatform } from "../platform/index.js";
import type { Platform, PlatformOptions } from "../platform/types.js";
import { buildGateway } from "./server.js";

/** What a test gets. */
export interface TestPlatform {
  readonly engine: FakeEngine;
  readonly platform: Platform;
  readonly dir: string;
  /** Closes platform and engine and removes the directory. */
  close(): Promise<void>;
}

/** Opens one. */
export async function openTestPlatform(
  engineOptions: FakeEngineOptions = {},
  options: Partial<PlatformOptions> = {},
): Promise<TestPlatform> {
  const dir = await mkdtemp(join(tmpdir(), "thaw-test-"));
  const engine = new FakeEngine({ dir, ...engineOptions });
  const platform = await openPlatform({ dataDir: join(dir, "data"), engine, drainMs: 200, ...options });
  return {
    engine,
    platform,
    dir,
    async close() {
      await platform.close();
      await engine.close();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** A {@link TestPlatform} behind a gateway without a port, which is closed with it. */
export async function openTestGateway(): Promise<TestPlatform & { readonly app: FastifyInstance }> {
  const test = await openTestPlatform();
  const app = buildGateway(test.platform);
  const close = async (): Promise<void> => {
    await app.close();
    await test.close();
  };
  return { ...test, app, close };
}

/** A package with one handler that nobody will run: the fake engine answers in its place. */
export function testZip(
  files: Readonly<Record<string, string>> = { "index.mjs": "export const handler = async () => null;\n" },
): Buffer {
  return Buffer.from(
    zipSync(Object.fromEntries(Object.entries(files).map(([name, text]) => [name, new TextEncoder().encode(text)]))),
  );
}
