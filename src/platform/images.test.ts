import { readdirSync } from "node:fs";
import { chmod, rm, stat, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import Database from "libsql";
import { afterEach, describe, expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import { GIB } from "../base/units.js";
import { openTestBed, type TestBed, until, zipOf } from "./testing.js";

let bed: TestBed;
afterEach(async () => {
  await bed.close();
});

const deploy = (name = "a") => bed.platform.deploy({ name, zip: zipOf() });
const imagesOnDisk = (): string[] => readdirSync(join(bed.dataDir, "images"));

describe("making an image fails", () => {
  it("because the function cannot be loaded: deploy --wait and every request get the reason", async () => {
    bed = await openTestBed();
    const details = { error: { errorType: "Error", errorMessage: "no database", trace: [] }, logs: "connecting\n" };
    bed.engine.failNext(
      "boot",
      new ThawError("INIT_FAILED", { what: 'Function "a" failed while it was loaded', why: "Error: no database", details }),
      2,
    );
    await deploy();
    await expect(bed.platform.waitReady("a")).rejects.toThrow('Function "a" failed while it was loaded. Error: no database');
    expect(bed.platform.get("a").image).toMatchObject({ state: "failed", reason: expect.stringContaining("no database") });
    const { result, start } = await bed.platform.invoke("a", "", { logTail: true });
    expect(start.kind).toBe("boot");
    expect(result).toMatchObject({ functionError: "Unhandled", platformError: "INIT_FAILED", alive: false });
    expect(JSON.parse(result.payload.toString())).toEqual(details.error);
    expect(await bed.platform.logs("a")).toMatch(
      /connecting\n[\s\S]*no image could be made.*no database[\s\S]*START[\s\S]*connecting\nEND/,
    );
    // Nothing keeps it from being loaded later.
    expect((await bed.platform.invoke("a", "")).result.functionError).toBeUndefined();
  });

  it("because the process holds what cannot be frozen: it runs by boot and says so in its status", async () => {
    bed = await openTestBed();
    bed.engine.failNext(
      "freeze",
      new ThawError("FREEZE_REFUSED", { what: 'Function "a" could not be frozen', why: "it has a child process (pid 7)" }),
    );
    await deploy();
    const status = await bed.platform.waitReady("a");
    expect(status).toEqual({
      state: "refused",
      reason: 'Function "a" could not be frozen. it has a child process (pid 7)',
      attempts: 1,
    });
    const { start } = await bed.platform.invoke("a", "");
    expect(start).toMatchObject({ kind: "boot" });
    expect(start.fallback).toBeUndefined();
  });

  it("because the disk is full: deploy --wait says so, and it is tried again until there is room", async () => {
    bed = await openTestBed();
    bed.engine.failNext("freeze", Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" }));
    await deploy();
    await expect(bed.platform.waitReady("a")).rejects.toThrow(
      'Function "a" could not be frozen. the disk is full. Free some space in the data directory\'s file system and try again',
    );
    expect(bed.platform.get("a").image).toMatchObject({
      state: "pending",
      reason: expect.stringContaining("the disk is full"),
      attempts: 1,
    });
    expect((await bed.platform.invoke("a", "", { dispose: true })).start.kind).toBe("boot");
    await until(() => bed.platform.get("a").image.state === "ready");
    expect(bed.platform.get("a").image).toMatchObject({ attempts: 2 });
    expect(bed.platform.get("a").image.reason).toBeUndefined();
    expect(bed.platform.metrics()).toMatchObject({ freezes: 1, freezeFailures: 1 });
  });

  it("because the moment was a bad one: it is tried again, and deploy --wait waits for that", async () => {
    bed = await openTestBed();
    const why = "signal 14 (SIGALRM) came at that moment";
    bed.engine.failNext("freeze", new ThawError("FREEZE_FAILED", { what: 'function "a" could not be frozen', why }), 2);
    await deploy();
    expect(await bed.platform.waitReady("a")).toMatchObject({ state: "ready", attempts: 3 });
    expect(bed.platform.metrics()).toMatchObject({ freezes: 1, freezeFailures: 2 });
  });

  it("because the moment was a bad one: who asks between two tries waits as well", async () => {
    bed = await openTestBed();
    bed.engine.failNext(
      "freeze",
      new ThawError("FREEZE_FAILED", { what: 'function "a" could not be frozen', why: "a signal came" }),
    );
    await deploy();
    await until(() => bed.platform.metrics().freezeFailures === 1);
    expect(bed.platform.get("a").image).toMatchObject({ state: "pending", reason: expect.stringContaining("a signal came") });
    expect(await bed.platform.waitReady("a")).toMatchObject({ state: "ready", attempts: 2 });
  });

  it.each([
    ["its process was killed", new ThawError("INSTANCE_EXITED", { what: "signal 9", details: { signal: 9 } })],
    [
      "it was killed while it was loaded",
      new ThawError("INIT_FAILED", { what: "f", cause: new ThawError("INSTANCE_EXITED", { what: "9", details: { signal: 9 } }) }),
    ],
    ["the database was held by another program", new ThawError("DATABASE_FAILED", { what: "database is locked" })],
    ["its base was damaged meanwhile", new ThawError("IMAGE_DAMAGED", { what: "the image file base cannot be used" })],
    ["its husk was killed", new ThawError("SANDBOX_FAILED", { what: "a husk ended before its boot stage was done" })],
  ])("because %s: it is tried again", async (_how, error) => {
    bed = await openTestBed();
    bed.engine.failNext("boot", error);
    await deploy();
    expect(await bed.platform.waitReady("a")).toMatchObject({ state: "ready", attempts: 2 });
  });

  it("because its process ends by itself: it is not tried again", async () => {
    bed = await openTestBed();
    bed.engine.failNext("freeze", new ThawError("INSTANCE_EXITED", { what: "Runtime exited with error: exit status 3" }));
    await deploy();
    await expect(bed.platform.waitReady("a")).rejects.toThrow("exit status 3");
    expect(bed.platform.get("a").image).toMatchObject({ state: "failed", attempts: 1 });
  });

  it("because freezing fails each time: after three tries deploy --wait says so, and it runs by boot", async () => {
    bed = await openTestBed();
    bed.engine.failNext(
      "freeze",
      new ThawError("FREEZE_FAILED", { what: 'function "a" could not be frozen', why: "it is odd" }),
      100,
    );
    await deploy();
    await expect(bed.platform.waitReady("a")).rejects.toThrow("it is odd");
    expect(bed.platform.get("a").image).toMatchObject({
      state: "failed",
      attempts: 3,
      reason: expect.stringContaining("it is odd"),
    });
    expect((await bed.platform.invoke("a", "", { dispose: true })).start.kind).toBe("boot");
  });

  it("because this machine cannot: boot only, and the status says so", async () => {
    bed = await openTestBed({}, { canFreeze: false });
    await deploy();
    expect(await bed.platform.waitReady("a")).toEqual({
      state: "none",
      reason: "This server runs functions without images: every start that finds no idle instance is a boot",
      attempts: 0,
    });
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("boot");
    for (const asked of [bed.platform.invoke("a", "", { prefer: { kind: "thaw" } }), bed.platform.heat("a", { requests: 1 })]) {
      await expect(asked).rejects.toMatchObject({
        why: expect.stringContaining("This server runs functions without images"),
        fix: expect.stringContaining("Start the server without --boot-only"),
      });
    }
    expect(bed.engine.calls).toEqual(["boot a"]);
  });

  it("too slowly for deploy --wait with a limit", async () => {
    bed = await openTestBed();
    bed.engine.delayMs.freeze = 100;
    await deploy();
    await expect(bed.platform.waitReady("a", { timeoutMs: 20 })).rejects.toMatchObject({
      code: "IMAGE_NOT_READY",
      message:
        'The image of function "a" is not ready. it took more than 0.02 s. It is still being made; the function runs by boot meanwhile',
    });
  });
});

describe("an image that cannot be used", () => {
  for (const code of ["IMAGE_DAMAGED", "IMAGE_MISMATCH", "THAW_FAILED"] as const) {
    it(`(${code}) is replaced: the request is booted, says why, and the next one is thawed`, async () => {
      bed = await openTestBed();
      await deploy();
      await bed.platform.waitReady("a");
      const [before] = imagesOnDisk();
      bed.engine.failNext(
        "thaw",
        new ThawError(code, { what: 'The image of "a" cannot be used', why: "libssl.so.3 has changed" }),
      );
      const { start } = await bed.platform.invoke("a", "", { dispose: true });
      expect(start).toMatchObject({ kind: "boot", fallback: 'The image of "a" cannot be used. libssl.so.3 has changed' });
      expect(bed.platform.get("a").lastFallback?.reason).toBe(start.fallback);
      await until(() => bed.platform.get("a").image.state === "ready");
      await until(() => imagesOnDisk().length === 1);
      expect(imagesOnDisk()).not.toEqual([before]);
      const next = await bed.platform.invoke("a", "");
      expect(next.start.kind).toBe("thaw");
      expect(next.start.fallback).toBeUndefined();
      expect(bed.platform.metrics().fallbacks).toBe(1);
    });
  }

  it("is dropped once, however many requests meet it at the same time", async () => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    bed.engine.failNext("thaw", new ThawError("THAW_FAILED", { what: "The husk died" }), 5);
    const outcomes = await Promise.all(Array.from({ length: 5 }, () => bed.platform.invoke("a", "", { dispose: true })));
    expect(outcomes.map((outcome) => outcome.start.fallback)).toEqual(Array(5).fill("The husk died"));
    await until(() => bed.platform.get("a").image.state === "ready");
    expect(bed.engine.calls.filter((call) => call === "removeImage a")).toHaveLength(1);
    await until(() => imagesOnDisk().length === 1);
  });

  it("is found out when the request is queued behind the stages already: it is booted, says why, and the function ran once", async () => {
    bed = await openTestBed({ maxInstances: 1 });
    await deploy();
    await bed.platform.waitReady("a");
    let ran = 0;
    bed.engine.handler = () => ++ran;
    bed.engine.failNext(
      "start",
      new ThawError("IMAGE_MISMATCH", { what: "The image does not fit", why: "libssl.so.3 has changed" }),
    );
    const { start, result } = await bed.platform.invoke("a", "");
    expect(start).toMatchObject({ kind: "boot", us: 90_000, fallback: "The image does not fit. libssl.so.3 has changed" });
    expect(result.payload.toString()).toBe("1");
    expect(ran).toBe(1);
    expect(bed.platform.get("a").lastFallback?.reason).toBe(start.fallback);
    expect(bed.platform.get("a").counts).toEqual({ running: 0, idle: 1, hibernated: 0, starting: 0, waiting: 0 });
    await until(() => bed.platform.get("a").image.state === "ready");
    expect(bed.platform.metrics()).toMatchObject({ fallbacks: 1, invocations: 1, starts: { boot: 1, thaw: 0 }, evictions: 0 });
  });

  it("is found out so by a request that demanded it, which is told and not booted", async () => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    bed.engine.failNext("start", new ThawError("THAW_FAILED", { what: "the thaw stage failed at «map»", why: "EINVAL" }));
    await expect(bed.platform.invoke("a", "", { prefer: { kind: "thaw" } })).rejects.toThrow(
      'Function "a" was not started: the request demands thaw. the thaw stage failed at «map». EINVAL. Try again when the new image is ready',
    );
    expect(bed.platform.get("a").instances).toEqual([]);
    expect(bed.engine.calls.filter((call) => call.startsWith("boot"))).toHaveLength(1);
    expect(bed.platform.metrics()).toMatchObject({ invocations: 0, fallbacks: 0 });
  });

  it("is kept when a husk is lost on its way: another husk is taken, and nobody notices", async () => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    bed.engine.failNext("start", new ThawError("SANDBOX_FAILED", { what: "a husk ended before its resume stage was done" }));
    const { start } = await bed.platform.invoke("a", "");
    expect(start).toMatchObject({ kind: "thaw", us: 1_800 });
    expect(start.fallback).toBeUndefined();
    expect(bed.engine.calls.filter((call) => call === "removeImage a")).toHaveLength(0);
    expect(bed.platform.metrics()).toMatchObject({ fallbacks: 0, invocations: 1 });
  });

  it("is blamed when two husks are lost to it, one after the other", async () => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    bed.engine.failNext("start", new ThawError("SANDBOX_FAILED", { what: "a husk ended before its thaw stage was done" }), 2);
    const { start } = await bed.platform.invoke("a", "");
    expect(start).toMatchObject({ kind: "boot", fallback: "a husk ended before its thaw stage was done" });
    await until(() => bed.platform.get("a").image.state === "ready");
  });

  it("is not blamed for what ends an instance after it ran", async () => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    bed.engine.failNext("invoke", new ThawError("KEEPER_FAILED", { what: "The keeper failed" }));
    await expect(bed.platform.invoke("a", "")).rejects.toThrow("The keeper failed");
    expect(bed.platform.get("a").image.state).toBe("ready");
    await until(() => bed.engine.live.size === 0);
  });

  it("is not blamed for an error that is not its own", async () => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    bed.engine.failNext("thaw", new ThawError("RESOURCE_EXHAUSTED", { what: "No process could be made", why: "32768 exist" }));
    await expect(bed.platform.invoke("a", "")).rejects.toThrow("No process could be made. 32768 exist");
    expect(bed.platform.get("a").image.state).toBe("ready");
  });
});

describe("after a restart", () => {
  it("images are opened one after the other, and first the one that a request waits for", async () => {
    bed = await openTestBed();
    for (const name of ["a", "b", "c", "d"]) {
      await deploy(name);
      await bed.platform.waitReady(name);
    }
    bed = await bed.restart();
    const opens = watchOpens();
    await until(() => opens.begun.length === 1);
    await bed.platform.invoke("d", "");
    await until(() => opens.begun.length === 4);
    expect(opens.begun).toEqual(["a", "d", "b", "c"]);
    // The one of the request, beside the one that was being opened.
    expect(opens.mostAtOnce).toBe(2);
  });

  it("a stop waits for the image that is being opened, and opens no other", async () => {
    bed = await openTestBed();
    for (const name of ["a", "b"]) {
      await deploy(name);
      await bed.platform.waitReady(name);
    }
    bed = await bed.restart();
    const opens = watchOpens();
    await until(() => opens.begun.length === 1);
    await bed.platform.close();
    expect(opens.atOnce).toBe(0);
    expect(opens.begun).toEqual(["a"]);
    bed = await bed.restart();
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("thaw");
  });

  /** Opening an image takes 20 ms from now on. Its function's name is a letter. */
  function watchOpens(): { begun: string[]; atOnce: number; mostAtOnce: number } {
    const open = bed.engine.openImage.bind(bed.engine);
    const seen = { begun: [] as string[], atOnce: 0, mostAtOnce: 0 };
    bed.engine.openImage = async (dir, quietly) => {
      if (quietly === true) return open(dir, quietly);
      seen.begun.push(basename(dir).slice(0, 1));
      seen.mostAtOnce = Math.max(seen.mostAtOnce, ++seen.atOnce);
      await new Promise((resolve) => setTimeout(resolve, 20));
      seen.atOnce--;
      return open(dir);
    };
    return seen;
  }

  it("functions and images are found again", async () => {
    bed = await openTestBed();
    const deployed = await bed.platform.deploy({ name: "a", zip: zipOf(), memoryMb: 256, env: { KEY: "v" } });
    await bed.platform.waitReady("a");
    const [image] = imagesOnDisk();
    bed = await bed.restart();
    const { start } = await bed.platform.invoke("a", "");
    expect(start.kind).toBe("thaw");
    expect(bed.engine.calls).toEqual([`openImage ${image}`, "thaw a"]);
    const found = bed.platform.get("a");
    expect(found).toMatchObject({
      memoryMb: 256,
      env: { KEY: "v" },
      revisionId: deployed.revisionId,
      codeSha256: deployed.codeSha256,
    });
    expect(found.image.state).toBe("ready");
  });

  it("code that only the server can read, because the directory was copied under such a umask, can be read by functions", async () => {
    bed = await openTestBed();
    await deploy();
    const parent = join(bed.dataDir, "functions", "a");
    const codeDir = join(parent, readdirSync(parent)[0] ?? "");
    await chmod(codeDir, 0o700);
    bed = await bed.restart();
    expect((await stat(codeDir)).mode & 0o777).toBe(0o755);
  });

  it("an image that was damaged meanwhile is refused: it boots, says so, and freezes anew", async () => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    const [image = ""] = imagesOnDisk();
    await writeFile(join(bed.dataDir, "images", image, "manifest.json"), "{");
    bed = await bed.restart();
    const { start } = await bed.platform.invoke("a", "", { dispose: true });
    expect(start.kind).toBe("boot");
    expect(start.fallback).toContain("its manifest cannot be read");
    await until(() => bed.platform.get("a").image.state === "ready");
    await until(() => imagesOnDisk().length === 1);
    expect(imagesOnDisk()).not.toEqual([image]);
    expect(await bed.platform.logs("a")).toContain("thaw: the image cannot be used and is made anew");
  });

  it("the first request finds its image prepared, where nobody asked at once; so it does after a deploy", async () => {
    bed = await openTestBed();
    for (const name of ["a", "b"]) {
      await bed.platform.deploy({ name, zip: zipOf() });
      await bed.platform.waitReady(name);
    }
    await until(() => bed.engine.prepared.length === 2);
    bed = await bed.restart();
    await until(() => bed.engine.prepared.length === 2);
    // They are opened side by side, so either may be first.
    expect([...bed.engine.prepared].sort()).toEqual(["a", "b"]);
  });

  it("a GiB of images is prepared, and no more", async () => {
    bed = await openTestBed();
    for (const name of ["a", "b", "c"]) {
      await bed.platform.deploy({ name, zip: zipOf() });
      await bed.platform.waitReady(name);
    }
    await bed.platform.close();
    const database = new Database(join(bed.dataDir, "thaw.db"));
    database
      .prepare("UPDATE images SET summary = json_set(summary, '$.bytesOnDisk', CAST(? AS INTEGER))")
      .run(Math.floor(GIB * 0.4));
    database.close();
    bed = await bed.restart();
    await until(() => bed.engine.prepared.length === 2);
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(bed.engine.prepared).toHaveLength(2);
    for (const name of ["a", "b", "c"]) expect((await bed.platform.invoke(name, "")).start.kind).toBe("thaw");
  });

  it("what starts of a new image touch is rehearsed, or found out with the declared events", async () => {
    bed = await openTestBed();
    await bed.platform.deploy({ name: "a", zip: zipOf() });
    await bed.platform.deploy({ name: "b", zip: zipOf(), warmUp: { events: [{ one: 1 }, 2], requests: 1 } });
    await until(() => bed.platform.get("b").image.heat?.state === "done" && bed.engine.prepared.length === 3);
    expect([...bed.engine.prepared].sort()).toEqual(["a by rehearsal", 'b by {"one":1}', 'b by {"one":1}']);
  });

  it("nobody waits for that: neither the server's end, nor the removal of a function that is being warmed up", async () => {
    bed = await openTestBed();
    const aborted: string[] = [];
    bed.engine.prepareImage = (image, { signal } = {}) =>
      new Promise((resolve) => {
        bed.engine.prepared.push(image.spec.name);
        signal?.addEventListener("abort", () => {
          aborted.push(image.spec.name);
          resolve();
        });
      });
    await bed.platform.deploy({ name: "warm", zip: zipOf(), warmUp: { events: [1], requests: 1 } });
    // Of its first image, and of its hotter one.
    await until(() => bed.engine.prepared.length === 2);
    await bed.platform.remove("warm");
    expect(aborted).toEqual(["warm", "warm"]);
    await bed.platform.deploy({ name: "other", zip: zipOf() });
    await until(() => bed.engine.prepared.length === 3);
    await bed.platform.close();
    expect(aborted).toEqual(["warm", "warm", "other"]);
  });

  it("an image that cannot be prepared is left to its first request", async () => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    bed = await bed.restart();
    bed.engine.failNext("prepareImage", new ThawError("IMAGE_DAMAGED", { what: "its pages do not match" }));
    await until(() => bed.engine.prepared.length === 1);
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("thaw");
    expect(bed.platform.get("a").image).toMatchObject({ state: "ready" });
  });

  it("an image that vanished is made anew", async () => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    await rm(join(bed.dataDir, "images", imagesOnDisk()[0] ?? ""), { recursive: true });
    bed = await bed.restart();
    expect((await bed.platform.waitReady("a")).state).toBe("ready");
  });

  it("what runs to find out about an image ends with its function, which is gone only then", async () => {
    bed = await openTestBed();
    const seen: string[] = [];
    bed.engine.prepareImage = async (_image, { signal } = {}) => {
      seen.push("begun");
      await new Promise((resolve) => signal?.addEventListener("abort", resolve));
      await new Promise((resolve) => setTimeout(resolve, 20));
      seen.push("over");
    };
    await deploy();
    await bed.platform.waitReady("a");
    await until(() => seen.length === 1);
    await bed.platform.remove("a");
    expect(seen).toEqual(["begun", "over"]);
  });

  it("an image that somebody inspects is removed when that is over, and its function is gone only then", async () => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    const { inspect } = bed.engine;
    let read = (): void => undefined;
    bed.engine.inspect = async (image) => {
      await new Promise<void>((resolve) => {
        read = resolve;
      });
      expect(imagesOnDisk()).toHaveLength(1);
      return inspect.call(bed.engine, image);
    };
    const inspected = bed.platform.inspect("a");
    const removed = bed.platform.remove("a");
    await until(() => bed.platform.list().length === 0);
    await new Promise((resolve) => setTimeout(resolve, 20));
    read();
    expect(await inspected).toBeDefined();
    await removed;
    expect(imagesOnDisk()).toEqual([]);
  });

  it("a function whose image somebody inspects keeps no other from being removed", async () => {
    bed = await openTestBed();
    for (const name of ["a", "b"]) {
      await deploy(name);
      await bed.platform.waitReady(name);
    }
    const { inspect } = bed.engine;
    let read = (): void => undefined;
    bed.engine.inspect = async (image) => {
      await new Promise<void>((resolve) => {
        read = resolve;
      });
      return inspect.call(bed.engine, image);
    };
    const inspected = bed.platform.inspect("a");
    const removed = bed.platform.remove("a");
    await until(() => bed.platform.list().length === 1);
    await bed.platform.remove("b");
    expect(imagesOnDisk()).toHaveLength(1);
    read();
    await Promise.all([inspected, removed]);
  });

  it.each([
    ["removed", () => bed.platform.remove("a")],
    ["the server's, which stops", () => bed.platform.close()],
  ])("a function that never ends loading holds nobody up when it is %s", async (_how, end) => {
    bed = await openTestBed();
    bed.engine.delayMs.boot = 1e9;
    await deploy();
    await until(() => bed.engine.calls.includes("boot a"));
    await end();
    expect(imagesOnDisk()).toEqual([]);
    expect(bed.engine.live.size).toBe(0);
    bed.engine.delayMs.boot = 0;
  });

  it("without freezing, images stay for the next server that can", async () => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    bed = await bed.restart({ canFreeze: false });
    expect(bed.platform.get("a").image.state).toBe("none");
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("boot");
    bed = await bed.restart({});
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("thaw");
  });

  it.each([
    ["removed", () => bed.platform.remove("a")],
    [
      "replaced",
      () => bed.platform.deploy({ name: "a", zip: zipOf({ "index.mjs": "" }), handler: "index.handler", update: true }),
    ],
  ])("without freezing, images of a function that is %s go with it", async (_how, change) => {
    bed = await openTestBed();
    await deploy();
    await bed.platform.waitReady("a");
    bed = await bed.restart({ canFreeze: false });
    expect(imagesOnDisk()).toHaveLength(1);
    await change();
    await until(() => imagesOnDisk().length === 0);
  });

  it("husks are parked again", async () => {
    bed = await openTestBed({ parked: { runtime: 2, prefaulted: 1 } });
    await deploy();
    await bed.platform.waitReady("a");
    bed = await bed.restart();
    await until(() => bed.engine.stats().husks.prefaulted === 1);
    expect(bed.engine.stats().husks.runtime).toBe(2);
  });
});
