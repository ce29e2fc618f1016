import { describe, expect, it } from "vitest";
import { ThawError } from "./errors.js";
import { createLogger, type LogLevel, silentLogger } from "./log.js";

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
