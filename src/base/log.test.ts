import { closeSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ThawError } from "./errors.js";
import { createLogger, type LogLevel, logTo, silentLogger } from "./log.js";

function capture(level: LogLevel): { log: ReturnType<typeof createLogger>; lines: () => Record<string, unknown>[] } {
  const written: string[] = [];
  const log = createLogger({ level, destination: { write: (line: string) => void written.push(line) } });
  return { log, lines: () => written.map((line) => JSON.parse(line)) };
}

describe("the log", () => {
  it("writes one JSON object a line, with a time and the level's name", () => {
    const { log, lines } = capture("info");
    log.info({ functionName: "hello" }, "deployed");
    log.debug("not at this level");
    expect(lines()).toHaveLength(1);
    expect(lines()[0]).toMatchObject({ level: "info", msg: "deployed", functionName: "hello" });
    expect(Number.isNaN(Date.parse(String(lines()[0]?.["time"])))).toBe(false);
  });

  it("does not end its process when the disk is full, however much is logged", () => {
    const fd = openSync("/dev/full", "w");
    const log = createLogger({ level: "info", destination: logTo(fd) });
    for (let line = 0; line < 100; line++) log.warn("x".repeat(50_000));
    closeSync(fd);
  });

  it("writes to a descriptor at once", () => {
    const path = join(tmpdir(), `thaw-log-${process.pid}`);
    const fd = openSync(path, "w");
    createLogger({ level: "info", destination: logTo(fd) }).warn("hello");
    expect(readFileSync(path, "utf8")).toContain('"msg":"hello"');
    closeSync(fd);
    rmSync(path);
  });

  it("shows our errors with code, what, why and fix, and their causes", () => {
    const { log, lines } = capture("info");
    const cause = Object.assign(new Error("no space left on device"), { code: "ENOSPC" });
    log.error({
      err: new ThawError("FREEZE_FAILED", { what: "cannot freeze hello", why: "the disk is full", fix: "make room", cause }),
    });
    expect(lines()[0]?.["err"]).toMatchObject({
      code: "FREEZE_FAILED",
      what: "cannot freeze hello",
      why: "the disk is full",
      fix: "make room",
      cause: { code: "ENOSPC", message: "no space left on device" },
    });
  });

  it("shows whatever else was thrown", () => {
    const { log, lines } = capture("info");
    log.error({ err: "just a string" });
    log.error({ err: new TypeError("odd") });
    expect(lines()[0]?.["err"]).toBe("just a string");
    expect(lines()[1]?.["err"]).toMatchObject({ message: "odd", stack: expect.stringContaining("TypeError: odd") });
  });

  it("can be silent", () => {
    expect(silentLogger().isLevelEnabled("fatal")).toBe(false);
  });
});
