/**
 * Images that cannot be used any more: damaged, or made for something else. The function boots, the reply says so, and the image is
 * made anew; nobody is ever answered from what the damage left.
 */
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it, vi } from "vitest";
import { decodeRawManifest, encodeManifest, imageFiles, type RawManifest } from "../src/image/index.js";
import { flipBit, flipStoredBit } from "./support/damage.js";
import { descendants } from "./support/processes.js";
import { type Files, HOLD, type Reply, TestServer, temporaryDir, useServers } from "./support/server.js";
import { until } from "./support/wait.js";

const FILES: Files = {
  "index.js": `
const { existsSync } = require("fs");
while (existsSync("${HOLD}")) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
const words = Array.from({ length: 2000 }, (_, index) => "word " + index);
let count = 0;
exports.handler = async ({ at }) => ({ word: words[at], count: ++count });`,
};

type Damage = (dir: string) => void;

/** Rewrites the manifest with its checksum right: what it says is wrong then, not how it is written. */
function rewrite(change: (manifest: RawManifest) => unknown): Damage {
  return (dir) => {
    const path = imageFiles(dir).manifest;
    const manifest = decodeRawManifest(readFileSync(path), path);
    change(manifest);
    writeFileSync(path, encodeManifest(manifest));
  };
}

/** As if the file had been replaced by an upgrade after the image was made. */
function upgraded(file: RegExp): Damage {
  return rewrite(({ facts }) => {
    const mapped = facts.regions.filter(({ path, identity }) => identity !== undefined && file.test(path ?? ""));
    if (mapped.length === 0) throw new Error(`no mapped file matches ${file}`);
    for (const { identity } of mapped) if (identity !== undefined) identity.mtimeS -= 3600;
  });
}

function truncated(file: keyof ReturnType<typeof imageFiles>, bytes: number): Damage {
  return (dir) => truncateSync(imageFiles(dir)[file], bytes);
}

/** Found when the server opens the image, at its start. */
const SEEN_AT_START: Readonly<Record<string, readonly [Damage, RegExp]>> = {
  "manifest-cut": [
    truncated("manifest", 1000),
    /manifest cannot be used\. it holds \d+ bytes behind its header where \d+ were written \(offset 1000\)/,
  ],
  "manifest-empty": [truncated("manifest", 0), /it does not begin with a thaw-manifest line \(offset 0\)/],
  "manifest-flipped": [(dir) => flipBit(imageFiles(dir).manifest, 2000), /its checksum does not match its \d+ bytes/],
  "manifest-gone": [(dir) => rmSync(imageFiles(dir).manifest), /ENOENT/],
  "pages-cut": [truncated("pages", 4096), /pages cannot be used\. it is 4096 bytes long where \d+ were written/],
  "image-gone": [(dir) => rmSync(dir, { recursive: true }), /ENOENT/],
  kernel: [
    rewrite(({ fingerprint }) => Object.assign(fingerprint, { kernel: "5.10.0" })),
    /was made for another kernel\. it was made for 5\.10\.0, this is /,
  ],
  cpu: [
    rewrite(({ fingerprint }) => Object.assign(fingerprint, { cpu: "0".repeat(64) })),
    /was made for another CPU\. it was made for features 000000000000, this is/,
  ],
  runtime: [
    rewrite(({ fingerprint }) => Object.assign(fingerprint, { runtime: "0".repeat(64) })),
    /was made for another thaw\. it was made for runtime 000000000000, this is runtime /,
  ],
};

/** Found by the first thaw. */
const SEEN_AT_THAW: Readonly<Record<string, readonly [Damage, RegExp]>> = {
  "pages-flipped": [flipStoredBit, /pages cannot be used\. its digest is \w+ where \w+ was written/],
  interpreter: [
    upgraded(/\/node$/),
    /does not fit this machine any more: \S+\/node is not the file it was made with\. its size, inode or times differ/,
  ],
  library: [upgraded(/\/libc\.so/), /does not fit this machine any more: \S+\/libc\.so\S* is not the file it was made with/],
};

function expectAnswer(reply: Reply, at: number): void {
  expect(reply.status, reply.text).toBe(200);
  expect(reply.headers.get("x-amz-function-error")).toBeNull();
  expect(reply.json).toEqual({ word: `word ${at}`, count: expect.any(Number) });
}

/** There is a new image, and it is thawed as if nothing had been. */
async function expectFrozenAnew(server: TestServer, name: string): Promise<void> {
  expect((await server.ready(name)).state).toBe("ready");
  const reply = await server.invoke(name, { at: 7 }, { "x-thaw-prefer": "thaw;dispose" });
  expectAnswer(reply, 7);
  expect(reply.start).toMatchObject({ kind: "thaw", generation: 0 });
  expect(reply.start.fallback).toBeUndefined();
}

useServers();

describe("images that changed while the server was stopped", () => {
  const dataDir = temporaryDir("images");
  const first = new Map<string, Reply>();
  let server: TestServer;
  beforeAll(async () => {
    const damages = {
      ...SEEN_AT_START,
      ...SEEN_AT_THAW,
      crowd: [upgraded(/\/node$/)] as const,
      "working-set": [truncated("workingSet", 20)] as const,
      sound: [() => undefined] as const,
    };
    const before = await TestServer.start(dataDir);
    const dirs = new Map<string, string>();
    for (const name of Object.keys(damages)) dirs.set(name, (await before.deployReady(name, FILES)).image?.dir ?? "");
    // Its working set is written after the first answers of two instances.
    for (const at of [1, 2]) await before.invoke("working-set", { at }, { "x-thaw-prefer": "thaw;dispose" });
    const names = Object.keys(SEEN_AT_START);
    const releases = await Promise.all(names.map((name) => before.hold(name)));
    await before.stop();
    for (const [name, [damage]] of Object.entries(damages)) damage(dirs.get(name) ?? "");
    server = await TestServer.start(dataDir);
    // All come while nothing can be loaded, and so before any new image is there.
    const asked = names.map((name) => server.invoke(name, { at: 42 }));
    await until("all to start", async () => ((await server.metrics()).instances.starting === names.length ? true : undefined));
    for (const release of releases) release();
    const replies = await Promise.all(asked);
    for (const [index, name] of names.entries()) first.set(name, replies[index] as Reply);
  }, 120_000);

  it("are told apart from those that did not", async () => {
    const reply = await server.invoke("sound", { at: 1999 });
    expectAnswer(reply, 1999);
    expect(reply.start).toMatchObject({ kind: "thaw", generation: 0 });
    expect(reply.start.fallback).toBeUndefined();
  });

  it("are used when only the working set is lost, which is no part of the truth", async () => {
    const reply = await server.invoke("working-set", { at: 3 });
    expectAnswer(reply, 3);
    expect(reply.start.kind).toBe("thaw");
    expect(reply.start.fallback).toBeUndefined();
  });

  it.each(Object.entries(SEEN_AT_THAW))("boot, say why and are frozen anew when a thaw finds it: %s", async (name, [, why]) => {
    const first = await server.invoke(name, { at: 42 });
    expectAnswer(first, 42);
    expect(first.start).toMatchObject({ kind: "boot", fallback: expect.stringMatching(why) });
    const { image, lastFallback } = await server.view(name);
    expect(lastFallback?.reason).toMatch(why);
    expect(["pending", "ready"]).toContain(image.state);
    await expectFrozenAnew(server, name);
    expect((await server.cli(["logs", name])).out).toMatch(
      new RegExp(`thaw: the image cannot be used and is made anew: .*${why.source}`),
    );
  });

  it.each(Object.entries(SEEN_AT_START))(
    "boot, say why and are frozen anew when the start finds it: %s",
    async (name, [, why]) => {
      const reply = first.get(name) as Reply;
      expectAnswer(reply, 42);
      expect(reply.start).toMatchObject({ kind: "boot", fallback: expect.stringMatching(why) });
      await expectFrozenAnew(server, name);
      expect((await server.cli(["logs", name])).out).toMatch(
        new RegExp(`thaw: the image cannot be used and is made anew: .*${why.source}`),
      );
    },
  );

  it("answer everybody when many requests find an upgrade at once", async () => {
    const booted = () =>
      descendants(server.keeper.pid)
        .filter(({ exe }) => exe.endsWith("/node"))
        .map(({ pid }) => pid);
    // Some of them may be on their way out.
    const before = new Set(booted());
    const release = await server.hold("crowd");
    const asked = Array.from({ length: 12 }, (_, at) => server.invoke("crowd", { at }));
    // And the one that a new image is made of.
    await until("all to be booted", () => booted().filter((pid) => !before.has(pid)).length === 13 || undefined);
    release();
    const replies = await Promise.all(asked);
    for (const [at, reply] of replies.entries()) {
      expectAnswer(reply, at);
      expect(reply.start).toMatchObject({ kind: "boot", fallback: expect.stringContaining("is not the file it was made with") });
    }
    await expectFrozenAnew(server, "crowd");
  });

  it("leave one image for each function, and nothing else", async () => {
    const kept = (await server.list()).map(({ image }) => image.image?.dir).sort();
    // Those that were given up go behind the requests that found them.
    await vi.waitFor(
      () => {
        const found = readdirSync(join(dataDir, "images")).map((entry) => join(dataDir, "images", entry));
        expect(found.sort()).toEqual(kept);
      },
      { timeout: 30_000 },
    );
  });
});

describe("images that change while the server runs", () => {
  let server: TestServer;
  const images = new Map<string, string>();
  beforeAll(async () => {
    server = await TestServer.start(temporaryDir("images-live"));
    for (const name of ["flipped", "cut", "gone", "demanded", "crowd"])
      images.set(name, (await server.deployReady(name, FILES)).image?.dir ?? "");
  });
  const dirOf = (name: string): string => images.get(name) ?? "";

  it.each([
    ["flipped", flipStoredBit, /pages cannot be used\. its digest is/],
    ["cut", truncated("pages", 1 << 20), /pages cannot be used\. it is 1048576 bytes long where/],
    ["gone", (dir: string) => rmSync(dir, { recursive: true }), /pages cannot be used\. it is missing/],
  ] as const)("are found at the next thaw: %s", async (name, damage, why) => {
    damage(dirOf(name));
    const first = await server.invoke(name, { at: 5 });
    expectAnswer(first, 5);
    expect(first.start).toMatchObject({ kind: "boot", fallback: expect.stringMatching(why) });
    await expectFrozenAnew(server, name);
  });

  it("are told to who demands a thaw, once", async () => {
    flipStoredBit(dirOf("demanded"));
    const reply = await server.invoke("demanded", { at: 5 }, { "x-thaw-prefer": "thaw" });
    expect(reply.status).toBe(409);
    expect(JSON.parse(reply.headers.get("x-thaw-error") ?? "{}")).toMatchObject({
      code: "PREFERENCE_UNAVAILABLE",
      why: expect.stringMatching(/its digest is/),
      fix: "Try again when the new image is ready",
    });
    await expectFrozenAnew(server, "demanded");
  });

  it("answer everybody when many requests find it at once", async () => {
    flipStoredBit(dirOf("crowd"));
    const replies = await Promise.all(Array.from({ length: 12 }, (_, at) => server.invoke("crowd", { at })));
    for (const [at, reply] of replies.entries()) expectAnswer(reply, at);
    await expectFrozenAnew(server, "crowd");
  });
});

describe("a data directory that was copied", () => {
  it("has its images read the code beside them, and nothing of the directory that it was copied from", async () => {
    const [first, second] = [temporaryDir("first"), temporaryDir("second")];
    const before = await TestServer.start(first);
    const source = 'exports.handler = async () => require("fs").readFileSync("/var/task/word", "utf8");';
    await before.deployReady("reader", { "index.js": source, word: "of the first" });
    await before.stop();
    // As tar, rsync and `cp --sparse=always` do: what is copied is the holes, too.
    execFileSync("cp", ["-a", "--sparse=always", `${first}/.`, second]);
    const [word = ""] = readdirSync(second, { recursive: true, encoding: "utf8" }).filter((path) => path.endsWith("/word"));
    writeFileSync(join(second, word), "of the second");
    const server = await TestServer.start(second);
    const read = async (): Promise<unknown> => {
      const { json, start } = await server.invoke("reader", {}, { "x-thaw-prefer": "thaw;dispose" });
      return [json, start.fallback];
    };
    expect(await read()).toEqual(["of the second", undefined]);
    rmSync(first, { recursive: true });
    expect(await read()).toEqual(["of the second", undefined]);
    await server.stop();
  });
});

describe("husks that are lost between their pool and the function", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start(temporaryDir("husks"), { args: ["--pool", "1"] });
    await server.deployReady("sound", FILES);
  });
  const husks = (): number[] =>
    descendants(server.keeper.pid)
      .filter(({ exe }) => exe.endsWith("/husk"))
      .map(({ pid }) => pid);

  /** False: it has ended. Instances that the server lets go meanwhile are husks, too. */
  const signalled = (pid: number, signal: NodeJS.Signals): boolean => {
    try {
      return process.kill(pid, signal);
    } catch {
      return false;
    }
  };

  it("cost the image nothing: another one is taken, and the function sees the request once", async () => {
    const { image } = await server.view("sound");
    // One for each runtime.
    const runtimes = (await server.metrics()).engine.husks.generic;
    const pooled = await until("husks in the pools", () => (husks().length >= Math.max(1, runtimes) ? husks() : undefined));
    // It holds the program, and the request is queued behind it, when it is killed.
    for (const husk of pooled) signalled(husk, "SIGSTOP");
    const invoked = server.invoke("sound", { at: 3 }, { "x-thaw-prefer": "thaw;husk=pooled" });
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(pooled.filter((husk) => signalled(husk, "SIGKILL")).length).toBeGreaterThan(0);
    const reply = await invoked;
    expect(reply.status, reply.text).toBe(200);
    expect(reply.json).toEqual({ word: "word 3", count: 1 });
    expect(reply.start).toMatchObject({ kind: "thaw" });
    expect(reply.start.fallback).toBeUndefined();
    expect((await server.view("sound")).image.image?.id).toBe(image.image?.id);
  });
});
