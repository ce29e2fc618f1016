import { describe, expect, it } from "vitest";
import { type LaunchInput, launch, nodeHeapMb, RESERVED_ENVIRONMENT } from "./launch.js";

const NODE: LaunchInput = {
  runtime: "nodejs20.x",
  interpreter: "/usr/bin/node",
  name: "hello",
  version: "3",
  handler: "index.handler",
  memoryMb: 512,
  env: {},
};

describe("launch", () => {
  it("starts Node with its heap below the memory of the function", () => {
    expect(launch(NODE).argv).toEqual([
      "/usr/bin/node",
      "--no-memory-reducer",
      "--v8-pool-size=1",
      "--require=/var/runtime/node/worker.cjs",
      "--max-semi-space-size=4",
      "--max-old-space-size=411",
      "/var/runtime/node/bootstrap.cjs",
    ]);
    for (const memoryMb of [128, 256, 1024, 10_240]) expect(nodeHeapMb(memoryMb)).toBeLessThan(memoryMb * 0.9);
  });

  it("leaves the heap to a user who chose one in NODE_OPTIONS", () => {
    const { argv, env } = launch({ ...NODE, env: { NODE_OPTIONS: "--max-old-space-size=64" } });
    expect(argv.join(" ")).not.toContain("max-old-space-size");
    expect(env.NODE_OPTIONS).toBe("--max-old-space-size=64");
  });

  it("sets Lambda's environment beside the user's", () => {
    const { env } = launch({ ...NODE, env: { STAGE: "test" } });
    expect(env).toMatchObject({
      STAGE: "test",
      _HANDLER: "index.handler",
      LAMBDA_TASK_ROOT: "/var/task",
      AWS_LAMBDA_FUNCTION_MEMORY_SIZE: "512",
      AWS_LAMBDA_FUNCTION_VERSION: "3",
      AWS_EXECUTION_ENV: "AWS_Lambda_nodejs20.x",
      UV_USE_IO_URING: "0",
      TZ: ":UTC",
    });
  });

  it("lets the user choose a time zone, as Lambda does", () => {
    expect(launch({ ...NODE, env: { TZ: "Europe/Berlin" } }).env.TZ).toBe("Europe/Berlin");
  });

  it("lets a Node function require its own files by their place below the task root, as in Lambda", () => {
    expect(launch(NODE).env.NODE_PATH?.split(":")).toContain("/var/task");
  });

  it("starts Python and lets the user choose what is not reserved", () => {
    const started = launch({
      ...NODE,
      runtime: "python3.11",
      interpreter: "/usr/bin/python3.11",
      env: { PYTHONDONTWRITEBYTECODE: "" },
    });
    expect(started.argv).toEqual(["/usr/bin/python3.11", "-s", "/var/runtime/python/bootstrap.py"]);
    expect(started.env.PYTHONDONTWRITEBYTECODE).toBe("");
  });

  it("puts the shim before the user's own preloads", () => {
    expect(launch({ ...NODE, preload: "/run/shim.so", env: { LD_PRELOAD: "/opt/mine.so" } }).env.LD_PRELOAD).toBe(
      "/run/shim.so:/opt/mine.so",
    );
    expect(launch(NODE).env).not.toHaveProperty("LD_PRELOAD");
  });

  it.each(RESERVED_ENVIRONMENT)("refuses the reserved name %s", (name) => {
    expect(() => launch({ ...NODE, env: { [name]: "x" } })).toThrow(
      `The environment of function "hello" sets ${name}. these names are reserved`,
    );
  });

  it("refuses names and values that no environment can hold, and runtimes that nobody knows", () => {
    expect(() => launch({ ...NODE, env: { "A=B": "x" } })).toThrow('The environment variable "A=B"');
    expect(() => launch({ ...NODE, env: { A: "\0" } })).toThrow('The environment variable "A"');
    expect(() => launch({ ...NODE, runtime: "cobol1.x" })).toThrow('Runtime "cobol1.x" is unknown');
  });
});
