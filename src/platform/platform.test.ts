import { copyFileSync, existsSync, readdirSync, readFileSync, renameSync, statSync } from "node:fs";
import { chmod, mkdir, rm, truncate, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import Database from "libsql";
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { isThawError } from "../base/errors.js";
import { FakeEnd, FakeEngine } from "../engine/fake.js";
import { openPlatform } from "./platform.js";
import { Store } from "./store.js";
import { openTestBed, type TestBed, until, zipOf } from "./testing.js";
import { LIMITS } from "./types.js";

let bed: TestBed;
beforeEach(async () => {
  bed = await openTestBed();
});
afterEach(async () => {
  await bed.close();
});

const deploy = async (name = "a", more: object = {}): Promise<void> => {
  await bed.platform.deploy({ name, zip: zipOf(), ...more });
  await bed.platform.waitReady(name);
};
const onDisk = (dir: string): string[] => readdirSync(join(bed.dataDir, dir));

describe("a request is refused", () => {
  it("for an unknown function", async () => {
    await expect(bed.platform.invoke("nope", "")).rejects.toThrow(
      'There is no function "nope". no function has been deployed. See `thaw ls` for those that exist, or deploy it with `thaw deploy`',
    );
    expect(() => bed.platform.get("nope")).toThrow('There is no function "nope"');
    expect(() => bed.platform.follow("nope")).toThrow('There is no function "nope"');
    await expect(bed.platform.logs("nope")).rejects.toThrow('There is no function "nope"');
    await expect(bed.platform.remove("nope")).rejects.toThrow('There is no function "nope"');
    await expect(bed.platform.waitReady("nope")).rejects.toThrow('There is no function "nope"');
  });

  it("for a version that does not exist", async () => {
    await deploy();
    await expect(bed.platform.invoke("a", "", { qualifier: "3" })).rejects.toThrow(
      'Function "a" has no version or alias "3". only $LATEST exists',
    );
    expect((await bed.platform.invoke("a", "", { qualifier: "$LATEST" })).executedVersion).toBe("$LATEST");
  });

  it("with a payload that is not JSON, before an instance is started", async () => {
    await deploy();
    for (const payload of ["{", "name=world", Buffer.from([0x22, 0xff, 0x22]), "undefined", " "]) {
      const error = await bed.platform.invoke("a", payload).catch((caught: unknown) => caught);
      expect(isThawError(error, "INVALID_PAYLOAD")).toBe(true);
      expect((error as Error).message).toMatch(
        /^The payload is not valid JSON\. .+\. Send a JSON value, such as \{"name":"world"\}$/,
      );
      await expect(bed.platform.check("a", payload)).rejects.toThrow("The payload is not valid JSON");
    }
    await expect(bed.platform.check("a", Buffer.from("\ufeff{}"))).rejects.toThrow("it begins with a byte order mark (U+FEFF)");
    expect(bed.engine.live.size).toBe(0);
  });

  it("with a context that is too large for a function, before an instance is started or used", async () => {
    await deploy();
    const clientContext = JSON.stringify(Array(15_500).fill(""));
    const refused =
      "The request's context is too large. client context and trace id have 77510 bytes as JSON texts, and the limit is 61440";
    await expect(bed.platform.invoke("a", "", { clientContext })).rejects.toThrow(refused);
    expect(bed.engine.live.size).toBe(0);
    await bed.platform.invoke("a", "");
    await expect(bed.platform.invoke("a", "", { traceId: clientContext })).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    expect((await bed.platform.invoke("a", "", { clientContext: clientContext.slice(0, 30_000) })).start.kind).toBe("reuse");
  });

  it("with a large payload that is not JSON, with the place, before an instance is started; others are answered meanwhile", async () => {
    await deploy();
    const many = `[${"1,".repeat(500_000)}1]`;
    for (const [payload, why] of [
      [`${many}]`, 'no JSON text goes on with its byte 1000003 ("]")'],
      [many.slice(0, -1), "it ends, after 1000002 bytes, before its value does"],
      [`\ufeff${many}`, "it begins with a byte order mark (U+FEFF), which cannot be seen"],
      [`["é${many}`, "it ends, after 1000007 bytes, before its value does"],
    ] as const) {
      const error = await bed.platform.invoke("a", Buffer.from(payload)).catch((caught: unknown) => caught);
      expect(isThawError(error, "INVALID_PAYLOAD")).toBe(true);
      expect(String(error)).toContain(`The payload is not valid JSON. ${why}. Send a JSON value`);
    }
    expect(bed.engine.live.size).toBe(0);
    const order: string[] = [];
    const large = bed.platform.invoke("a", many).then(({ result }) => {
      order.push("large");
      return result;
    });
    await bed.platform.invoke("a", "{}").then(() => order.push("small"));
    expect((await large).functionError).toBeUndefined();
    expect(order).toEqual(["small", "large"]);
  });

  it("with a payload beyond 6 MB, naming both sizes", async () => {
    await deploy();
    const payload = Buffer.alloc(LIMITS.payloadBytes + 1, 0x20);
    await expect(bed.platform.invoke("a", payload)).rejects.toThrow(
      "The payload was not accepted. it has 6291457 bytes, and the limit is 6291456. Store the data elsewhere and send a reference",
    );
  });

  it("while the server stops", async () => {
    await deploy();
    await bed.platform.close();
    const sentence = "the server is stopping. Try again when it has been started again";
    await expect(bed.platform.invoke("a", "")).rejects.toThrow(sentence);
    await expect(bed.platform.deploy({ name: "b", zip: zipOf() })).rejects.toThrow(sentence);
    await expect(bed.platform.remove("a")).rejects.toThrow(sentence);
  });
});

describe("a function's own failure is a result", () => {
  it("when it throws: the instance stays", async () => {
    await deploy();
    bed.engine.handler = () => {
      throw new TypeError("boom");
    };
    const { result } = await bed.platform.invoke("a", "");
    expect(result.functionError).toBe("Unhandled");
    expect(JSON.parse(result.payload.toString())).toMatchObject({ errorType: "TypeError", errorMessage: "boom" });
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("reuse");
    expect(bed.platform.metrics()).toMatchObject({ functionErrors: 2, timeouts: 0 });
  });

  it("when it does not answer in time: the instance ends, the log says so, and the next request is thawed", async () => {
    await deploy("a", { timeoutMs: 1000 });
    bed.engine.handler = () => new Promise(() => {});
    const { result } = await bed.platform.invoke("a", "");
    expect(result).toMatchObject({ functionError: "Unhandled", platformError: "TIMEOUT", alive: false });
    expect(await bed.platform.logs("a")).toMatch(/\nRequestId: \S+ Error: TIMEOUT\nEND RequestId: .*\tStatus: timeout\n/s);
    await until(() => bed.engine.live.size === 0);
    bed.engine.handler = () => 1;
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("thaw");
    expect(bed.platform.metrics()).toMatchObject({ timeouts: 1 });
  });

  it("has all of its time, however long its instance took to be ready for the request", async () => {
    await deploy("a", { timeoutMs: 1000 });
    await bed.platform.invoke("a", "");
    bed.engine.handler = () => new Promise(() => {});
    const [instance] = [...bed.engine.live];
    const invoke = instance?.invoke.bind(instance);
    if (instance === undefined || invoke === undefined) throw new Error("no instance is there");
    let began = 0;
    instance.invoke = async (...args) => {
      await new Promise((resolve) => setTimeout(resolve, 200));
      began = performance.now();
      return invoke(...args);
    };
    expect((await bed.platform.invoke("a", "")).result.platformError).toBe("TIMEOUT");
    expect(performance.now() - began).toBeGreaterThan(990);
  });

  for (const end of ["OUT_OF_MEMORY", "INSTANCE_EXITED", "PROTOCOL_VIOLATION"] as const) {
    it(`when the instance ends with ${end}: nothing of it is used again`, async () => {
      await deploy();
      bed.engine.handler = () => {
        throw new FakeEnd(end);
      };
      const { result } = await bed.platform.invoke("a", "", { trace: true });
      expect(result).toMatchObject({ functionError: "Unhandled", platformError: end, alive: false });
      await until(() => bed.engine.live.size === 0);
      expect(bed.platform.get("a").instances).toEqual([]);
      expect(bed.platform.metrics().outOfMemory).toBe(end === "OUT_OF_MEMORY" ? 1 : 0);
    });
  }
});

describe("a deploy is refused", () => {
  it("for a name that is taken, and changes nothing", async () => {
    await deploy();
    const before = bed.platform.get("a");
    await expect(bed.platform.deploy({ name: "a", zip: zipOf({ "index.js": "exports.handler = 2" }) })).rejects.toThrow(
      'Function "a" was not deployed. a function of that name exists already. Deploy with --update to replace it, or choose another name',
    );
    expect(bed.platform.get("a")).toEqual(before);
    expect(onDisk("functions/a")).toHaveLength(1);
  });

  it("for one of two that came at the same time", async () => {
    const results = await Promise.allSettled([deploy(), bed.platform.deploy({ name: "a", zip: zipOf() })]);
    expect(results.map((result) => result.status).sort()).toEqual(["fulfilled", "rejected"]);
  });

  it("for a package without a handler, and leaves nothing", async () => {
    await expect(bed.platform.deploy({ name: "a", zip: zipOf({ "readme.md": "x" }) })).rejects.toThrow(
      "no handler that could be guessed",
    );
    await expect(bed.platform.deploy({ name: "a", zip: new Uint8Array(3) })).rejects.toThrow("it is not a zip file");
    expect(onDisk("functions")).toEqual([]);
    expect(bed.platform.list()).toEqual([]);
  });

  it("for a runtime that the machine does not have", async () => {
    await expect(bed.platform.deploy({ name: "a", zip: zipOf(), runtime: "nodejs99.x" })).rejects.toThrow(
      'Runtime "nodejs99.x" is not available',
    );
  });
});

/** Flushes of the database take until each is let go. */
function holdFlushes(): { end: (error?: Error) => void; called: () => boolean } {
  let end = (_error?: Error): void => undefined;
  const held = new Promise<void>((resolve, reject) => {
    end = (error) => (error === undefined ? resolve() : reject(error));
  });
  const spy = vi.spyOn(Store.prototype, "flush").mockImplementation(() => held);
  onTestFinished(() => spy.mockRestore());
  return { end, called: () => spy.mock.calls.length > 0 };
}

describe("the disk", () => {
  it("has a deploy before it is acknowledged, and other functions answer meanwhile", async () => {
    await deploy("b");
    const { end, called } = holdFlushes();
    let acknowledged = false;
    const deploying = bed.platform.deploy({ name: "a", zip: zipOf() }).then(() => {
      acknowledged = true;
    });
    await until(called);
    expect((await bed.platform.invoke("b", "{}")).result.functionError).toBeUndefined();
    expect(acknowledged).toBe(false);
    end();
    await deploying;
    expect(bed.platform.get("a").name).toBe("a");
  });

  it("that does not take a deploy is told of, which is in force all the same, as it is after a restart", async () => {
    const { end, called } = holdFlushes();
    const deploying = bed.platform.deploy({ name: "a", zip: zipOf() });
    await until(called);
    end(new Error("the disk is gone"));
    await expect(deploying).rejects.toThrow("the disk is gone");
    vi.restoreAllMocks();
    const answered = async () => JSON.parse((await bed.platform.invoke("a", '{"name":"x"}')).result.payload.toString());
    const answer = await answered();
    await expect(
      bed.platform.deploy({ name: "a", zip: zipOf(), runtime: "none" as "nodejs20.x", update: true }),
    ).rejects.toThrow();
    bed = await bed.restart();
    expect(await answered()).toEqual(answer);
    await deploy("a", { update: true });
  });

  it("is waited for by a server that stops, which unpacks no deploy any more that waits for its turn", async () => {
    const { end, called } = holdFlushes();
    const first = bed.platform.deploy({ name: "a", zip: zipOf() });
    await until(called);
    const second = bed.platform.deploy({ name: "a", zip: zipOf({ "index.mjs": "export const handler = 1" }), update: true });
    const told = expect(second).rejects.toMatchObject({ code: "SHUTTING_DOWN", what: 'Function "a" was not deployed' });
    const closed = bed.platform.close();
    end();
    expect((await first).name).toBe("a");
    await told;
    await closed;
    expect(onDisk("functions/a")).toHaveLength(1);
  });

  it("has a deploy before the code that it replaces is removed", async () => {
    await deploy("a");
    const before = onDisk("functions/a");
    const { end, called } = holdFlushes();
    const deploying = bed.platform.deploy({ name: "a", zip: zipOf({ "index.mjs": "export const handler = 1" }), update: true });
    await until(called);
    await until(() => onDisk("images").length === 0);
    expect(onDisk("functions/a")).toEqual(expect.arrayContaining(before));
    end();
    await deploying;
    await until(() => onDisk("functions/a").length === 1);
    expect(onDisk("functions/a")).not.toEqual(before);
  });

  it("has a removal before anything of the function is removed", async () => {
    await deploy("a");
    const { end, called } = holdFlushes();
    const removing = bed.platform.remove("a");
    await until(called);
    expect(onDisk("functions")).toEqual(["a"]);
    expect(onDisk("images")).toHaveLength(1);
    end();
    await removing;
    expect(onDisk("functions")).toEqual([]);
  });
});

describe("a deployed function", () => {
  it("answers at once by boot, and by thaw when the image is ready", async () => {
    bed.engine.delayMs.freeze = 30;
    await bed.platform.deploy({ name: "a", zip: zipOf() });
    expect((await bed.platform.invoke("a", `{"name":"world"}`, { dispose: true })).start.kind).toBe("boot");
    await bed.platform.waitReady("a");
    const outcome = await bed.platform.invoke("a", `{"name":"world"}`, { logTail: true, trace: true, requestId: "r-1" });
    expect(outcome).toMatchObject({
      requestId: "r-1",
      executedVersion: "$LATEST",
      start: { kind: "thaw", loader: "splice", generation: 0 },
    });
    expect(outcome.result.payload.toString()).toBe('{"event":{"name":"world"},"function":"a"}');
    expect(outcome.logTail?.toString()).toMatch(
      /^START RequestId: r-1 Version: \$LATEST\nEND RequestId: r-1\nREPORT RequestId: r-1\t/,
    );
    expect(outcome.pages).toMatchObject({ written: 300 });
    expect(outcome.memory?.privateBytes).toBeGreaterThan(0);
  });

  it("is answered though nothing can be seen of its instance any more", async () => {
    await deploy();
    bed.engine.failNext("pages", new Error("the image is gone"));
    const outcome = await bed.platform.invoke("a", "{}", { trace: true });
    expect([outcome.result.functionError, outcome.pages, outcome.memory]).toEqual([undefined, undefined, undefined]);
    expect((await bed.platform.invoke("a", "{}", { trace: true })).start.kind).toBe("reuse");
  });

  it("counts the faults of its starts after their answers: in the metrics, and in the start of who asked for a trace", async () => {
    await bed.platform.deploy({ name: "a", zip: zipOf() });
    await bed.platform.waitReady("a");
    const traced = await bed.platform.invoke("a", "{}", { trace: true, dispose: true, prefer: { kind: "thaw" } });
    expect(traced.start).toMatchObject({ faultsOutside: 7, faults: { minor: 400, major: 3, diskBytes: 12_288 } });
    const plain = await bed.platform.invoke("a", "{}", { prefer: { kind: "thaw" } });
    expect(plain.start.faults).toBeUndefined();
    expect((await bed.platform.invoke("a", "{}", { prefer: { kind: "reuse" }, trace: true })).start.faults).toBeUndefined();
    expect((await bed.platform.invoke("a", "{}", { prefer: { kind: "boot" }, trace: true })).start.faults).toBeUndefined();
    const counted = { faults: 806, faultsOutside: 14, majorFaults: 6 };
    await until(() => bed.platform.metrics().faults === counted.faults);
    expect(bed.platform.metrics()).toMatchObject({ ...counted, functions: { a: counted } });
  });

  it("keeps processors awake from the request in hand to the answer, or the error, in hand", async () => {
    const { platform, engine } = bed;
    await deploy();
    let waiting = 0;
    const seen: number[] = [];
    vi.spyOn(engine.cpuLatency, "awaited").mockImplementation(() => {
      waiting++;
    });
    vi.spyOn(engine.cpuLatency, "answered").mockImplementation(() => {
      waiting--;
    });
    engine.handler = () => {
      seen.push(waiting);
      throw new Error("as it does");
    };
    await Promise.all([platform.invoke("a", "{}"), platform.invoke("a", "{}")]);
    await expect(platform.invoke("nobody", "{}")).rejects.toThrow();
    await expect(platform.invoke("a", "{")).rejects.toThrow();
    expect([seen.length, Math.min(...seen), waiting]).toEqual([2, 1, 0]);
  });

  it("is answered, heated and listed on whatever the policies of who runs the server throw", async () => {
    const throwing = (): never => {
      throw new Error("as it does");
    };
    const decider = { choose: throwing, freezeAt: throwing, answered: throwing, surplus: throwing, save: throwing };
    await bed.close();
    bed = await openTestBed({ policy: { name: "mine", decide: throwing }, heatPolicy: { name: "mine", begin: () => decider } });
    await deploy();
    await bed.platform.heat("a", { requests: 1 });
    for (let request = 0; request < 70; request++) {
      const { result, start } = await bed.platform.invoke("a", "{}", { dispose: true, prefer: { kind: "thaw" } });
      expect([result.functionError, start.generation]).toEqual([undefined, 1]);
    }
    expect(bed.platform.images("a").map(({ generation }) => generation)).toEqual([0, 1]);
  });

  it("takes an empty payload for {}", async () => {
    await deploy();
    for (const payload of ["", Buffer.alloc(0)]) {
      expect((await bed.platform.invoke("a", payload)).result.payload.toString()).toContain('"event":{}');
    }
  });

  it("is listed with all that is known of it", async () => {
    await deploy("b", { description: "second", maxInstances: 3, timeoutMs: 5000 });
    await deploy("a");
    expect(bed.platform.list().map((info) => info.name)).toEqual(["a", "b"]);
    expect(bed.platform.get("b")).toMatchObject({
      arn: "arn:aws:lambda:us-east-1:000000000000:function:b",
      version: "$LATEST",
      runtime: "nodejs20.x",
      handler: "index.handler",
      memoryMb: 128,
      timeoutMs: 5000,
      maxInstances: 3,
      description: "second",
      codeSha256: expect.stringMatching(/^[A-Za-z0-9+/]{43}=$/),
      image: { state: "ready", attempts: 1, image: { generation: 0, heat: 0 } },
      instances: [],
      counts: { running: 0, idle: 0, hibernated: 0, starting: 0, waiting: 0 },
    });
  });

  it("counts for itself and for all", async () => {
    await deploy("a");
    await deploy("b");
    await bed.platform.invoke("a", "");
    await bed.platform.invoke("a", "");
    await bed.platform.invoke("b", "");
    const metrics = bed.platform.metrics();
    expect(metrics).toMatchObject({ invocations: 3, starts: { boot: 0, thaw: 2, parked: 0, reuse: 1 }, freezes: 2 });
    expect(metrics.functions["a"]).toMatchObject({ invocations: 2, starts: { thaw: 1, reuse: 1 } });
  });
});

describe("an update", () => {
  it("answers with the new code at once, lets running requests end, and leaves nothing of the old", async () => {
    await deploy();
    let open = (): void => {};
    bed.engine.handler = async (event, context) => {
      if ((event as { wait?: boolean }).wait) await new Promise<void>((resolve) => (open = resolve));
      return context.spec.codeDir;
    };
    const running = bed.platform.invoke("a", `{"wait":true}`);
    await until(() => bed.platform.get("a").counts.running === 1);
    const oldDir = join(bed.dataDir, "functions/a", onDisk("functions/a")[0] ?? "");
    await bed.platform.deploy({ name: "a", zip: zipOf({ "index.js": "exports.handler = 2" }), memoryMb: 512, update: true });
    await bed.platform.waitReady("a");
    const now = JSON.parse((await bed.platform.invoke("a", "")).result.payload.toString());
    expect(now).not.toBe(oldDir);
    expect(existsSync(oldDir)).toBe(true);
    open();
    expect(JSON.parse((await running).result.payload.toString())).toBe(oldDir);
    await until(() => !existsSync(oldDir) && onDisk("images").length === 1);
    expect(bed.platform.get("a").memoryMb).toBe(512);
    expect(bed.engine.live.size).toBe(1);
  });

  it("with the same package keeps the code, and still makes a new image", async () => {
    await deploy();
    const image = onDisk("images");
    await deploy("a", { memoryMb: 1024, update: true });
    await until(() => onDisk("images").length === 1);
    expect(onDisk("images")).not.toEqual(image);
    expect(onDisk("functions/a")).toHaveLength(1);
    expect((await bed.platform.invoke("a", "")).result.functionError).toBeUndefined();
  });

  it("while its image is being made abandons that image", async () => {
    bed.engine.delayMs.freeze = 20;
    await bed.platform.deploy({ name: "a", zip: zipOf() });
    await until(() => bed.engine.calls.includes("freeze a"));
    await deploy("a", { memoryMb: 256, update: true });
    await until(() => onDisk("images").length === 1);
    expect(bed.platform.get("a").image.state).toBe("ready");
  });

  it("is what requests get that were waiting for the old function's image or its only place", async () => {
    bed.engine.handler = (_, context) => context.spec.memoryMb;
    bed.engine.delayMs.freeze = 500;
    await bed.platform.deploy({ name: "a", zip: zipOf() });
    const waiting = bed.platform.invoke("a", "", { prefer: { kind: "thaw" } });
    await until(() => bed.engine.calls.includes("freeze a"));
    bed.engine.delayMs.freeze = 0;
    await deploy("a", { memoryMb: 256, maxInstances: 1, update: true });
    const outcome = await waiting;
    expect([outcome.start.kind, outcome.result.payload.toString()]).toEqual(["thaw", "256"]);

    bed.engine.delayMs.dispose = 500;
    await bed.platform.invoke("a", "", { dispose: true });
    const second = bed.platform.invoke("a", "");
    await bed.platform.deploy({ name: "a", zip: zipOf(), memoryMb: 512, update: true });
    expect((await second).result.payload.toString()).toBe("512");
  });

  it("that is refused leaves the old function as it was", async () => {
    await deploy();
    await expect(bed.platform.deploy({ name: "a", zip: zipOf({ x: "" }), update: true })).rejects.toThrow("no handler");
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("thaw");
    expect(onDisk("functions/a")).toHaveLength(1);
  });
});

describe("removing a function", () => {
  it("leaves no instance, image, code or log, and the name is free", async () => {
    await deploy();
    await bed.platform.invoke("a", "");
    await bed.platform.logs("a");
    await bed.platform.remove("a");
    expect(bed.engine.live.size).toBe(0);
    for (const dir of ["functions", "images", "logs"]) expect(onDisk(dir)).toEqual([]);
    await expect(bed.platform.invoke("a", "")).rejects.toThrow('There is no function "a"');
    await deploy();
    expect((await bed.platform.invoke("a", "")).start.kind).toBe("thaw");
  });

  it.each([
    ["it", () => bed.platform.remove("a")],
    ["the server's end", () => bed.platform.close()],
  ])(
    "right after an update: %s waits for the request on the old code, and not for all the time that it had",
    async (_what, end) => {
      await deploy("a", { timeoutMs: 60_000 });
      let release = (): void => {};
      bed.engine.handler = () => new Promise<void>((resolve) => (release = resolve)).then(() => "old");
      const running = bed.platform.invoke("a", "");
      await until(() => bed.platform.get("a").counts.running === 1);
      await bed.platform.deploy({ name: "a", zip: zipOf({ "index.js": "exports.handler = 2" }), update: true });
      const began = performance.now();
      const ended = end();
      release();
      expect((await running).result.payload.toString()).toBe('"old"');
      await ended;
      expect(performance.now() - began).toBeLessThan(30_000);
      expect(bed.engine.live.size).toBe(0);
    },
    90_000,
  );

  it("waits for a running request, but only so long", async () => {
    await deploy("a", { timeoutMs: 60_000 });
    bed.engine.handler = () => new Promise((resolve) => setTimeout(() => resolve("done"), 50));
    const running = bed.platform.invoke("a", "");
    await until(() => bed.engine.live.size === 1);
    await bed.platform.remove("a");
    expect((await running).result.payload.toString()).toBe('"done"');

    await deploy("b", { timeoutMs: 60_000 });
    bed.engine.handler = () => new Promise(() => {});
    const stuck = bed.platform.invoke("b", "");
    await until(() => bed.engine.live.size === 1);
    await bed.platform.remove("b");
    expect((await stuck).result).toMatchObject({ platformError: "INSTANCE_EXITED", alive: false });
    expect(bed.engine.live.size).toBe(0);
    expect(onDisk("functions")).toEqual([]);
  });

  it("while its image is being made stops that", async () => {
    bed.engine.delayMs.freeze = 30;
    await bed.platform.deploy({ name: "a", zip: zipOf() });
    const waiting = bed.platform.waitReady("a");
    waiting.catch(() => {});
    await until(() => bed.engine.calls.includes("freeze a"));
    await bed.platform.remove("a");
    await expect(waiting).rejects.toThrow("the function was removed meanwhile");
    expect(onDisk("images")).toEqual([]);
    expect(bed.engine.live.size).toBe(0);
  });

  it("is told to who waits for its image or heats it, and neither its replacement nor the server's end is taken for it", async () => {
    const update = { name: "a", zip: zipOf({ "index.mjs": "export const handler = () => 2;" }), update: true };
    await bed.platform.deploy({ name: "a", zip: zipOf() });
    await bed.platform.waitReady("a");
    bed.engine.handler = () => new Promise(() => {});
    const heated = bed.platform.heat("a", { requests: 1 });
    heated.catch(() => {});
    await until(() => bed.engine.live.size > 0);
    bed.engine.delayMs.freeze = 30;
    await bed.platform.deploy(update);
    await expect(heated).rejects.toMatchObject({ code: "WARM_UP_FAILED", why: "it was replaced meanwhile" });
    const waiting = bed.platform.waitReady("a", { timeoutMs: 30_000 });
    await bed.platform.deploy({ ...update, zip: zipOf() });
    expect(await waiting).toMatchObject({ state: "ready" });
    await bed.platform.deploy(update);
    const last = bed.platform.waitReady("a");
    last.catch(() => {});
    await bed.platform.close();
    await expect(last).rejects.toMatchObject({ code: "SHUTTING_DOWN" });
  });
});

describe("a data directory", () => {
  it("is refused while another platform holds it, and free when that was closed", async () => {
    const engine = new FakeEngine();
    await expect(openPlatform({ dataDir: bed.dataDir, engine })).rejects.toThrow(
      `The data directory ${bed.dataDir} cannot be used. a server with process id ${process.pid} is using it`,
    );
    await bed.platform.close();
    await (await openPlatform({ dataDir: bed.dataDir, engine })).close();
  });

  it("is swept of what nobody owns when it is opened", async () => {
    await deploy();
    const mine = [onDisk("functions/a"), onDisk("images")];
    await bed.platform.close();
    for (const dir of ["functions/ghost/abc", "functions/a/.tmp-abc-1", "functions/a/0123", "images/a.0123", "images/.tmp-a.1"]) {
      await mkdir(join(bed.dataDir, dir), { recursive: true });
    }
    await writeFile(join(bed.dataDir, "logs/ghost.log"), "x");
    bed = await bed.restart();
    expect([onDisk("functions/a"), onDisk("images")]).toEqual(mine);
    expect(onDisk("functions")).toEqual(["a"]);
    expect(onDisk("logs")).toEqual([]);
  });

  it.each(["functions/hello/index.mjs", "functions/index.mjs", "images/photo.png", "logs/app.log"])(
    "is not taken when it has no database and somebody's %s, which stays",
    async (name) => {
      const dataDir = join(bed.dataDir, "project");
      const path = join(dataDir, name);
      await mkdir(dirname(path), { recursive: true });
      await chmod(dirname(path), 0o755);
      await writeFile(path, "mine");
      await expect(openPlatform({ dataDir, engine: bed.engine })).rejects.toThrow(
        `The data directory ${dataDir} cannot be used. it has no database of thaw, but ${path}, which thaw did not write and would remove. Give the server a directory of its own with --data`,
      );
      expect(readFileSync(path, "utf8")).toBe("mine");
      expect(statSync(dirname(path)).mode & 0o777).toBe(0o755);
      expect(readdirSync(dataDir)).toHaveLength(1);
    },
  );

  it("keeps its functions when its database was moved away, or another's is in its place, which is told; until it is back, or they are given up", async () => {
    await deploy();
    await bed.platform.close();
    const path = join(bed.dataDir, "thaw.db");
    const kept = join(bed.dataDir, "kept.db");
    const id = join(bed.dataDir, "thaw.id");
    const open = () => openPlatform({ dataDir: bed.dataDir, engine: bed.engine });
    const fix = `Restore it from a backup, or start with another data directory; who wants none of those functions any more removes ${id}`;
    renameSync(path, kept);
    await expect(open()).rejects.toThrow(
      `The database ${path} could not be opened. it is not there, though functions are. ${fix}`,
    );
    expect(existsSync(path)).toBe(false);
    const other = await openTestBed();
    await other.platform.close();
    copyFileSync(join(other.dataDir, "thaw.db"), path);
    await other.close();
    await expect(open()).rejects.toThrow(
      `The database ${path} cannot be used. it is another one than that of the functions beside it, and names none of them. ${fix}`,
    );
    expect([onDisk("functions"), onDisk("images").length]).toEqual([["a"], 1]);
    copyFileSync(kept, path);
    bed = await bed.restart();
    expect((await bed.platform.invoke("a", "")).result.functionError).toBeUndefined();
    await bed.platform.close();
    for (const name of readdirSync(bed.dataDir).filter((name) => /^thaw\.(?:db|id)/.test(name)))
      await rm(join(bed.dataDir, name));
    await writeFile(join(bed.dataDir, "logs/a.log.1"), "x");
    bed = await bed.restart();
    expect(bed.platform.list()).toEqual([]);
    expect(["functions", "images", "logs"].flatMap(onDisk)).toEqual([]);
  });

  it("is taken with a database of an older thaw, which has no name yet, and knows its functions", async () => {
    await deploy();
    await bed.platform.close();
    const database = new Database(join(bed.dataDir, "thaw.db"));
    database.exec("DROP TABLE identity; PRAGMA user_version = 4");
    database.close();
    for (let opened = 0; opened < 2; opened++) {
      bed = await bed.restart();
      expect(bed.platform.list()).toHaveLength(1);
      expect(onDisk("functions")).toEqual(["a"]);
      await bed.platform.close();
    }
  });

  it("whose database names nothing yet is taken with the next one, when nothing is lost by that", async () => {
    await bed.platform.close();
    for (const name of readdirSync(bed.dataDir).filter((name) => name.startsWith("thaw.db"))) await rm(join(bed.dataDir, name));
    bed = await bed.restart();
    await deploy();
    bed = await bed.restart();
    expect(bed.platform.list()).toHaveLength(1);
  });

  it("keeps what it has when a row of its database makes no sense, which is told", async () => {
    await deploy("a");
    await deploy("b");
    for (const name of ["a", "b"]) await bed.platform.waitReady(name);
    await bed.platform.close();
    const there = (): unknown => ["functions", "functions/a", "functions/b", "images"].map(onDisk);
    const before = there();
    const database = new Database(join(bed.dataDir, "thaw.db"));
    database.prepare("UPDATE versions SET code_hex = '../b' WHERE function_name = 'a'").run();
    database.prepare("DELETE FROM images WHERE function_name = 'b'").run();
    database.close();
    await expect(openPlatform({ dataDir: bed.dataDir, engine: bed.engine })).rejects.toMatchObject({ code: "DATABASE_FAILED" });
    expect(there()).toEqual(before);
  });

  it("keeps its functions when its database was cut to nothing, which is told", async () => {
    await deploy();
    await bed.platform.close();
    for (const name of readdirSync(bed.dataDir).filter((name) => name.startsWith("thaw.db-"))) await rm(join(bed.dataDir, name));
    const path = join(bed.dataDir, "thaw.db");
    await truncate(path);
    await expect(openPlatform({ dataDir: bed.dataDir, engine: bed.engine })).rejects.toThrow(
      `The database ${path} could not be opened. it is empty, though functions are. Restore it from a backup`,
    );
    expect(onDisk("functions")).toEqual(["a"]);
  });

  it("that is closed is all in thaw.db: who copies that alone has every function", async () => {
    await deploy();
    await bed.platform.close();
    // What remains beside it holds nothing, whoever still has it open.
    const log = join(bed.dataDir, "thaw.db-wal");
    expect(existsSync(log) ? statSync(log).size : 0).toBe(0);
    const copy = join(bed.dataDir, "..", "copy.db");
    copyFileSync(join(bed.dataDir, "thaw.db"), copy);
    const database = new Database(copy);
    expect(database.prepare("SELECT function_name FROM versions").all()).toEqual([{ function_name: "a" }]);
    database.close();
  });

  it("is closed with its requests answered, idempotently", async () => {
    await deploy();
    bed.engine.handler = () => new Promise((resolve) => setTimeout(() => resolve("done"), 50));
    const running = bed.platform.invoke("a", "");
    await until(() => bed.engine.live.size === 1);
    await Promise.all([bed.platform.close(), bed.platform.close()]);
    expect((await running).result.payload.toString()).toBe('"done"');
    expect(bed.engine.live.size).toBe(0);
    await bed.platform.close();
  });

  it("that is closed tells a request whose instance did not start in time so: the function is not gone", async () => {
    await deploy();
    // Long after the time for requests that run is over.
    bed.engine.delayMs.thaw = 2_500;
    const starting = bed.platform.invoke("a", "");
    const told = starting.catch((caught: unknown) => caught);
    await until(() => bed.platform.get("a").counts.starting === 1);
    await bed.platform.close();
    expect(isThawError(await told, "SHUTTING_DOWN")).toBe(true);
    expect(((await told) as Error).message).toContain('Function "a" was not started. the server is stopping');
    expect(bed.engine.live.size).toBe(0);
  });

  it("that is closed tells a request that did not end in time so: it is not the function's error", async () => {
    await deploy("a", { timeoutMs: 60_000 });
    bed.engine.handler = (_event, context) => {
      context.log("so far\n");
      return new Promise(() => {});
    };
    const stuck = bed.platform.invoke("a", "", { requestId: "r1" });
    await until(() => bed.platform.get("a").counts.running === 1);
    const closed = bed.platform.close();
    const error = await stuck.catch((caught: unknown) => caught);
    expect(isThawError(error, "SHUTTING_DOWN")).toBe(true);
    expect((error as Error).message).toBe(
      'Function "a" was ended in the middle of the request. the server is stopping, and waits 0.3 s for requests that run. Try again when it has been started again',
    );
    await closed;
    expect(readFileSync(join(bed.dataDir, "logs/a.log"), "utf8")).toMatch(
      /^START RequestId: r1 .*\nso far\nFunction "a" was ended .* the server is stopping.*\nEND RequestId: r1\n/,
    );
    expect(bed.platform.metrics().functionErrors).toBe(0);
    expect(bed.engine.live.size).toBe(0);
  });
});
