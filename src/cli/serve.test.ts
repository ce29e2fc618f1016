import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ThawError } from "../base/errors.js";
import { FakeEngine } from "../engine/fake.js";
import type { CpuLatencyWish } from "../linux/cpu-latency.js";
import { type CliOptions, runCli } from "./testing.js";

const BAD_MACHINE = {
  interpreters: [],
  ok: false,
  canFreeze: false,
  canBoot: true,
  checks: [
    { name: "ptrace", ok: false, required: true, says: "not permitted.", fix: "run as root." },
    { name: "swap", ok: false, required: false, says: "off" },
  ],
};

let cwd: string;
let engine: FakeEngine;
beforeEach(async () => {
  cwd = await mkdtemp(join(tmpdir(), "thaw-serve-"));
  engine = new FakeEngine({ dir: cwd });
});
afterEach(() => rm(cwd, { recursive: true, force: true }));

/** Runs `thaw serve` until its first line is there, then `during`, then stops it with a signal. */
async function serve(args: readonly string[], options: CliOptions = {}, during: (url: string) => Promise<void> = async () => {}) {
  const stop = new AbortController();
  let doing: Promise<void> | undefined;
  const run = await runCli(["serve", "--port", "0", ...args], {
    cwd,
    stop,
    openEngine: async () => engine,
    onOut: (out) => {
      const url = /http:\S+/.exec(out)?.[0];
      if (url !== undefined) doing ??= during(url).finally(() => stop.abort());
    },
    ...options,
  });
  await doing;
  return run;
}

describe("serve", () => {
  it("tells the engine how deeply idle processors may sleep", async () => {
    const told: (CpuLatencyWish | undefined)[] = [];
    const openEngine: CliOptions["openEngine"] = async ({ cpuLatency }) => {
      told.push(cpuLatency);
      return new FakeEngine({ dir: cwd });
    };
    for (const args of [[], ["--cpu-latency", "off"], ["--cpu-latency", "20"]]) await serve(args, { openEngine });
    expect(told).toEqual([undefined, "off", 20]);
    const wrong = await runCli(["serve", "--cpu-latency", "-1"], { cwd });
    expect([wrong.code, wrong.err]).toEqual([2, expect.stringContaining("It must be off, or a whole number up to 10000.")]);
  });

  it("says in one line where it listens, serves until a signal, and leaves nothing open", async () => {
    let seen = "";
    const run = await serve([], {}, async (url) => {
      seen = (await runCli(["ls", "--url", url])).out;
    });
    expect(run.code).toBe(0);
    expect(run.out).toMatch(
      /^thaw listens on http:\/\/127\.0\.0\.1:\d+ \(freezing, nodejs20\.x, python3\.11\), data in .*\/data\n$/,
    );
    expect(run.err).toBe("stopping; a second signal forces it\n");
    expect(seen).toContain("No functions.");
    expect(engine.closed).toBe(true);
  });

  it("releases the data directory, so that the next server can have it", async () => {
    await serve(["--data", "d"]);
    engine = new FakeEngine({ dir: cwd });
    expect((await serve(["--data", "d"])).code).toBe(0);
  });

  it("does not drop what it is asked to park when there will be no images", async () => {
    const run = await runCli(["serve", "--port", "0", "--boot-only", "--park", "image=1"], {
      cwd,
      openEngine: async () => engine,
    });
    expect([run.code, run.err]).toEqual([1, expect.stringContaining("--park and --boot-only exclude each other")]);
  });

  it("warns when others can reach it", async () => {
    expect((await serve(["--host", "0.0.0.0"])).err).toMatch(
      /^warning: it listens on every address of this machine: whoever reaches it can deploy and run code/,
    );
  });

  it("hands its policies to the platform", async () => {
    const args = ["--pool", "5", "--max-instances", "7", "--memory-budget", "1.5G"];
    args.push("--policy", "histogram", "--heat-policy", "pronghorn");
    await serve(args, {}, async (url) => {
      const reply = (await (await fetch(`${url}/thaw/v1/metrics`)).json()) as { instances: object; engine: object };
      const memory = { budgetBytes: 1.5 * 2 ** 30, residentBytes: 0, hibernatedBytes: 0 };
      expect(reply).toMatchObject({ instances: { max: 7 }, engine: { husks: { generic: 5 } }, memory });
    });
  });

  it("keeps husks with the runtime mapped unasked, unless it is told how many or none", async () => {
    const keeping = async (...args: string[]): Promise<number> => {
      engine = new FakeEngine({ dir: cwd });
      await serve(args);
      return engine.runtime;
    };
    expect(await keeping()).toBe(2);
    expect(await keeping("--park", "prefaulted=1")).toBe(2);
    expect(await keeping("--park", "runtime=0")).toBe(0);
    expect(await keeping("--park", "runtime=4")).toBe(0);
  });

  it("fills provisioned husks with the loader that it was told, though it parks none of its own", async () => {
    const park = vi.spyOn(engine, "park");
    await mkdir(join(cwd, "hello"));
    await writeFile(join(cwd, "hello", "index.mjs"), "export const handler = async () => null;\n");
    await serve(["--park-loader", "eager"], {}, async (url) => {
      await runCli(["deploy", join(cwd, "hello"), "--url", url, "--provisioned", "2", "--wait"]);
    });
    expect(park.mock.calls.map(([, ...rest]) => rest)).toEqual([["prefaulted", 2, "eager"]]);
  });

  it("hands the times of idle instances to the policy", async () => {
    await mkdir(join(cwd, "hello"));
    await writeFile(join(cwd, "hello", "index.mjs"), "export const handler = async () => null;\n");
    const states = async (hibernatedS: string, expected: readonly string[]) => {
      engine = new FakeEngine({ dir: cwd });
      engine.residentBytes.warm = 80 * 2 ** 20;
      await serve(["--keep-warm", "0.02", "--keep-hibernated", hibernatedS, "--data", hibernatedS], {}, async (url) => {
        const json = async (...args: string[]) => JSON.parse((await runCli([...args, "--json"], { url, cwd })).out);
        await json("deploy", "hello", "--wait");
        await json("invoke", "hello");
        await expect
          .poll(async () => (await json("ls")).functions[0].instances.map(({ state }: { state: string }) => state))
          .toEqual(expected);
      });
    };
    await states("600", ["hibernated"]);
    await states("0.02", []);
  });
});

describe("serve where freezing cannot work", () => {
  it("says why, and offers to run without images", async () => {
    const run = await serve([], { machine: BAD_MACHINE });
    expect(run).toEqual({
      code: 1,
      out: "",
      err:
        "error: Functions cannot be frozen on this machine\n" +
        "  why: ptrace: not permitted\n" +
        "  fix: run as root; `thaw serve --boot-only` runs functions without images\n",
    });
    expect(engine.calls).toEqual([]);
  });

  it("does not offer what would fail as well", async () => {
    const run = await serve([], { machine: { ...BAD_MACHINE, canBoot: false } });
    expect(run.err).toBe(
      "error: Functions cannot run on this machine\n" + "  why: ptrace: not permitted\n" + "  fix: run as root\n",
    );
  });

  it("runs with --boot-only, and says so", async () => {
    engine = new FakeEngine({ dir: cwd, canFreeze: false });
    let bootOnly: boolean | undefined;
    const run = await serve(["--boot-only"], {
      machine: BAD_MACHINE,
      openEngine: async (options) => {
        bootOnly = options.bootOnly;
        return engine;
      },
    });
    expect(run.code).toBe(0);
    expect(bootOnly).toBe(true);
    expect(run.out).toContain("(booting only, ");
  });
});

describe("serve that cannot start", () => {
  it("says why the engine could not be opened", async () => {
    const openEngine = async () => {
      throw new ThawError("NATIVE_MISSING", { what: "The native helpers are missing", fix: "npm run build" });
    };
    expect(await serve([], { openEngine })).toEqual({
      code: 1,
      out: "",
      err: "error: The native helpers are missing\n  fix: npm run build\n",
    });
  });

  it("closes the engine when the port is taken", async () => {
    await serve([], {}, async (url) => {
      const second = new FakeEngine({ dir: cwd });
      const port = new URL(url).port;
      const run = await runCli(["serve", "--port", port, "--data", "second"], { cwd, openEngine: async () => second });
      expect(run.code).toBe(1);
      expect(run.err).toMatch(/^error: Cannot listen on 127\.0\.0\.1:\d+\n {2}why: Another program listens there/);
      expect(second.closed).toBe(true);
    });
  });

  it("refuses an unknown THAW_LOG", async () => {
    expect((await serve([], { env: { THAW_LOG: "loud" } })).err).toMatch(
      /^error: THAW_LOG is "loud"\n {2}why: There is no such level\n {2}fix: Use one of /,
    );
  });
});
