/** What a deploy sends, and how, as a user sees it. */
import { randomBytes } from "node:crypto";
import { rmSync } from "node:fs";
import { mkdir, readdir, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { MIB } from "../base/units.js";
import { type Gateway, openGateway } from "../gateway/index.js";
import { openTestPlatform, type TestPlatform } from "../gateway/testing.js";
import { until } from "../platform/testing.js";
import { type CliOptions, type CliRun, runCli } from "./testing.js";

let test: TestPlatform;
let gateway: Gateway;
let cwd: string;
beforeEach(async () => {
  test = await openTestPlatform();
  gateway = await openGateway({ platform: test.platform });
  cwd = join(test.dir, "cwd");
  await mkdir(join(cwd, "large"), { recursive: true });
  await writeFile(join(cwd, "large/index.mjs"), "export const handler = async () => null;\n");
  await writeFile(join(cwd, "large/noise"), randomBytes(24 * MIB));
});
afterEach(async () => {
  await gateway.close();
  await test.close();
});

const deploy = (args: readonly string[] = [], options: CliOptions = {}): Promise<CliRun> =>
  runCli(["deploy", "large", ...args], { url: gateway.url, cwd, ...options });
const codeFolders = (): Promise<string[]> => readdir(join(test.dir, "data/functions"));

describe("a large deploy", () => {
  it("tells on a terminal how far it is, and takes that back", async () => {
    const run = await deploy([], { interactive: true });
    expect(run).toMatchObject({ code: 0, out: expect.stringMatching(/^large deployed: .*, 24 MiB of code\n$/) });
    const said = run.err.split("\r\u001b[K");
    expect(said.slice(0, 2)).toEqual(["sending its code …", expect.stringMatching(/^sending 24 MiB of code … \d %$/)]);
    expect(said.slice(-3)).toEqual(["sending 24 MiB of code … 100 %", "unpacking its code …", ""]);
  });

  it("with warm-up events is one form, of which neither part is lost", async () => {
    await writeFile(join(cwd, "events.json"), '[{"one": 1}]');
    const run = await deploy(["--warm-up", "events.json", "--json"]);
    expect(JSON.parse(run.out)).toMatchObject({ warmUp: { eventCount: 1 }, codeBytes: expect.any(Number) });
    const [sha = ""] = await readdir(join(test.dir, "data/functions/large"));
    expect((await readdir(join(test.dir, "data/functions/large", sha))).sort()).toEqual(["index.mjs", "noise"]);
  });

  it("that the server refuses in the middle is told why, and leaves nothing there", async () => {
    const full = new ThawError("RESOURCE_EXHAUSTED", { what: "The code package could not be received", why: "the disk is full" });
    const { receive } = test.platform;
    test.platform.receive = (source) =>
      receive.call(
        test.platform,
        (async function* () {
          let bytes = 0;
          for await (const piece of source) {
            bytes += piece.length;
            if (bytes > 2 * MIB) throw full;
            yield piece;
          }
        })(),
      );
    const run = await deploy();
    expect(run).toMatchObject({ code: 1, err: "error: The code package could not be received\n  why: the disk is full\n" });
    expect(await codeFolders()).toEqual([]);
  });

  it("of a function that exists is refused before it is sent", async () => {
    expect((await deploy()).code).toBe(0);
    test.platform.receive = () => expect.unreachable("it was asked for");
    expect((await deploy()).err).toContain('error: Function "large" was not deployed\n');
  });

  it("of which a file goes away meanwhile names it, and leaves nothing there", async () => {
    const check = test.platform.checkDeploy.bind(test.platform);
    test.platform.checkDeploy = (request) => {
      check(request);
      rmSync(join(cwd, "large/noise"));
    };
    const run = await deploy();
    expect(run).toMatchObject({
      code: 1,
      err: expect.stringMatching(/large cannot be deployed\n {2}why: noise cannot be read: ENOENT/),
    });
    // The server hears of it a moment later.
    await expect.poll(codeFolders).toEqual([]);
    expect(test.platform.list()).toEqual([]);
  });

  it("that is interrupted leaves nothing there", async () => {
    const stop = new AbortController();
    const { receive } = test.platform;
    let ended = false;
    test.platform.receive = async (source) => {
      async function* slowly(): AsyncGenerator<Uint8Array> {
        for await (const piece of source) {
          yield piece;
          stop.abort();
        }
      }
      return receive.call(test.platform, slowly()).finally(() => {
        ended = true;
      });
    };
    const run = await deploy([], { stop });
    expect(run.code).not.toBe(0);
    await until(() => ended);
    expect([await codeFolders(), test.platform.list()]).toEqual([[], []]);
  });

  it("is sent to who never asks for it, as some proxies do", async () => {
    let bytes = 0;
    const mute = createServer().on("checkContinue", async (request, reply) => {
      for await (const piece of request) bytes += (piece as Buffer).length;
      reply
        .writeHead(201)
        .end(JSON.stringify({ name: "large", codeSha256: "", runtime: "r", handler: "h", memoryMb: 1, codeBytes: bytes }));
    });
    await new Promise<void>((resolve) => {
      mute.listen(0, "127.0.0.1", resolve);
    });
    const run = await deploy([], { url: `http://127.0.0.1:${(mute.address() as AddressInfo).port}` });
    expect(run.out).toBe("large deployed: r, h, 1 MB, 24 MiB of code\n");
    expect(bytes).toBeGreaterThan(24 * MIB);
    mute.close();
  });
});
