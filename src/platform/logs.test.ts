import { readdirSync, readFileSync, statSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { InvokeResult, StartResult } from "../engine/types.js";
import { FILE_BYTES, FunctionLog, renderRequest, tailOf } from "./logs.js";
import type { LogEntry } from "./types.js";

let dir: string;
let failures: unknown[];
let log: FunctionLog;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "thaw-logs-"));
  failures = [];
  log = new FunctionLog(dir, "hello", (error) => failures.push(error));
});
afterEach(async () => {
  await log.close();
  await rm(dir, { recursive: true, force: true });
});

const start: StartResult = { kind: "thaw", us: 1840, phases: [], waitUs: 0, prefetchedPages: 0 };
const result: InvokeResult = {
  payload: Buffer.from("1"),
  logs: Buffer.from("first\nsecond"),
  handlerMs: 1,
  totalMs: 3.074,
  maxMemoryMb: 44.6,
  alive: true,
};

describe("a request's log", () => {
  it("has Lambda's form", () => {
    expect(renderRequest("id-1", 128, start, result)).toBe(
      "START RequestId: id-1 Version: $LATEST\nfirst\nsecond\nEND RequestId: id-1\n" +
        "REPORT RequestId: id-1\tDuration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 45 MB" +
        "\tRestore Duration: 1.84 ms\n",
    );
  });

  it("says that it ran out of time, and how it was started", () => {
    const text = renderRequest("id", 128, { ...start, kind: "boot" }, { ...result, platformError: "TIMEOUT" });
    expect(text).toContain("\tInit Duration: 1.84 ms\tStatus: timeout\n");
    expect(renderRequest("id", 128, { ...start, kind: "reuse" }, result)).not.toMatch(/Init|Restore/);
  });

  it.each(["no JSON", "null", "[]", "7", ""])(
    "of an end that the function claims, with a reply of %j, says nothing",
    (payload) => {
      const claimed = { ...result, platformError: "RESPONSE_TOO_LARGE" as const, payload: Buffer.from(payload) };
      expect(renderRequest("id", 128, start, claimed)).toContain("second\nEND RequestId: id\n");
    },
  );

  it("of an end that the function claims, with a reply that takes long to read, says nothing", () => {
    const payload = Buffer.from(JSON.stringify({ errorMessage: "x".repeat(70_000) }));
    const claimed = { ...result, platformError: "RESPONSE_TOO_LARGE" as const, payload };
    expect(renderRequest("id", 128, start, claimed)).toContain("second\nEND RequestId: id\n");
  });

  it("says why it was not answered, once", () => {
    const ended = (platformError: InvokeResult["platformError"], errorType: string): string => {
      const payload = Buffer.from(JSON.stringify({ errorType, errorMessage: "why" }));
      return renderRequest("id", 128, start, { ...result, ...(platformError === undefined ? {} : { platformError }), payload });
    };
    expect(ended("TIMEOUT", "Sandbox.Timedout")).toContain("first\nsecond\nwhy\nEND RequestId: id\n");
    for (const text of [ended("INIT_FAILED", "Runtime.ExitError"), ended(undefined, "Error")]) {
      expect(text).toContain("second\nEND");
    }
  });

  it("has a tail of 4 KB that begins with a whole character", () => {
    const tail = tailOf(`${"é".repeat(4000)}x`);
    expect(tail.length).toBe(4095);
    expect(tail.toString("utf8")).toMatch(/^é+x$/);
    expect(tailOf("short").toString()).toBe("short");
  });
});

describe("a function's log", () => {
  it("is rendered behind whoever appends, and before whoever reads it", async () => {
    const rendered: string[] = [];
    const append = (name: string): void =>
      log.append(name, () => {
        rendered.push(name);
        return `${name}\n`;
      });
    append("a");
    append("b");
    expect(rendered).toEqual([]);
    expect(await log.tail()).toBe("a\nb\n");
    append("c");
    const seen = log.follow();
    expect((await seen.next()).value).toMatchObject({ requestId: "a", text: "a\n" });
    expect(rendered).toEqual(["a", "b", "c"]);
    append("d");
    await new Promise((resolve) => setImmediate(resolve));
    expect(rendered).toEqual(["a", "b", "c", "d"]);
    append("e");
    await log.close();
    expect(readFileSync(join(dir, "hello.log"), "utf8")).toBe("a\nb\nc\nd\ne\n");
    await seen.return(undefined);
  });

  it("that cannot be written is reported, and followers still get it", async () => {
    await rm(dir, { recursive: true });
    const seen = log.follow();
    log.append("1", "one\n");
    await log.flush();
    expect(failures).toHaveLength(1);
    expect((await seen.next()).value).toMatchObject({ requestId: "1", text: "one\n" });
    await seen.return();
  });

  it("says of each batch that is lost whether the one before was, too", async () => {
    const told: boolean[] = [];
    const own = new FunctionLog(join(dir, "missing"), "hello", (_, again) => told.push(again));
    const write = async (): Promise<void> => {
      own.append("1", "one\n");
      await own.flush();
    };
    await write();
    await write();
    await mkdir(join(dir, "missing"));
    await write();
    await rm(join(dir, "missing"), { recursive: true });
    await write();
    expect(told).toEqual([false, true, false]);
  });

  it("gives its last whole lines, also of a former server", async () => {
    log.append("1", "one\n");
    await log.close();
    const next = new FunctionLog(dir, "hello", () => {});
    next.append("2", "two\nthree\n");
    expect(await next.tail()).toBe("one\ntwo\nthree\n");
    expect(await next.tail(8)).toBe("three\n");
    await next.close();
  });

  it("is moved away at 10 MiB, so that it takes 20 MiB at most", async () => {
    const chunk = `${"x".repeat(1024 * 1024 - 1)}\n`;
    for (let index = 0; index < 25; index++) {
      log.append(String(index), chunk);
      await log.flush();
    }
    expect(readdirSync(dir).sort()).toEqual(["hello.log", "hello.log.1"]);
    for (const name of readdirSync(dir)) expect(statSync(join(dir, name)).size).toBeLessThanOrEqual(FILE_BYTES);
    expect((await log.tail(6 * 1024 * 1024)).length).toBeGreaterThan(4 * 1024 * 1024);
  });

  it("takes no more when all of that is written at once, and not when a request alone has more", async () => {
    const chunk = `${"x".repeat(1024 * 1024 - 1)}\n`;
    for (let index = 0; index < 25; index++) log.append(String(index), chunk);
    await log.flush();
    const sizes = (): number[] => readdirSync(dir).map((name) => statSync(join(dir, name)).size);
    expect(Math.max(...sizes())).toBeLessThanOrEqual(FILE_BYTES);
    // What is no UTF-8 grows threefold.
    log.append("large", `${"\ufffd".repeat(8 * 1024 * 1024)}\nits end\n`);
    await log.flush();
    expect(Math.max(...sizes())).toBeLessThanOrEqual(FILE_BYTES);
    expect(await log.tail(9)).toBe("its end\n");
  });

  it("of a long entry keeps the end in memory for who follows later", async () => {
    log.append("1", `${"line\n".repeat(1024 * 1024)}last\n`);
    const { value } = await log.follow().next();
    const { requestId, text } = value as LogEntry;
    expect(requestId).toBe("1");
    expect(text).toMatch(/^line\n(line\n)*last\n$/);
    expect(text.length).toBeLessThanOrEqual(256 * 1024);
  });

  it("is lost to a reader that takes nothing while megabytes come, who is told how much", async () => {
    const seen = log.follow();
    const first = seen.next();
    log.append("first", "one\n");
    expect((await first).value).toMatchObject({ text: "one\n" });
    for (let index = 0; index < 20; index++) log.append(String(index), `${"x".repeat(4 * 1024 * 1024)}\n`);
    expect((await seen.next()).value).toMatchObject({
      text: "thaw: 17 requests are missing here: this reader is too slow\n",
    });
    const kept: string[] = [];
    while (kept.at(-1) !== "19") kept.push(((await seen.next()).value as LogEntry).requestId);
    expect(kept).toEqual(["17", "18", "19"]);
    await seen.return();
  });

  it("goes on in a new file when somebody removed the full one", async () => {
    log.append("1", `${"x".repeat(FILE_BYTES - 10)}\n`);
    await log.flush();
    await rm(join(dir, "hello.log"));
    log.append("2", "a line that does not fit\n");
    log.append("3", "another\n");
    await log.flush();
    expect(failures).toEqual([]);
    expect(await log.tail()).toBe("a line that does not fit\nanother\n");
  });

  it("is followed from the backlog on, until the signal", async () => {
    log.append("1", "one\n");
    const controller = new AbortController();
    const texts: string[] = [];
    const reading = (async () => {
      for await (const entry of log.follow({ signal: controller.signal })) {
        texts.push(entry.text);
        if (entry.requestId === "2") controller.abort();
      }
    })();
    await new Promise((resolve) => setTimeout(resolve, 5));
    log.append("2", "two\n");
    await reading;
    expect(texts).toEqual(["one\n", "two\n"]);
  });

  it("ends its followers when it is removed, and leaves no file", async () => {
    log.append("1", "one\n");
    await log.flush();
    expect(readFileSync(join(dir, "hello.log"), "utf8")).toBe("one\n");
    const seen = log.follow({ backlog: false });
    const next = seen.next();
    await log.remove();
    expect((await next).done).toBe(true);
    expect(readdirSync(dir)).toEqual([]);
  });
});
