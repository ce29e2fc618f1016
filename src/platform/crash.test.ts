/**
 * Kills a server with SIGKILL at each named place, opens its data directory again, and looks: every function that was
 * acknowledged answers, and nothing lies around that nobody owns. The server is a child process over the fake engine; vitest
 * cannot run TypeScript in a child, so the platform is compiled once, into a directory from which packages resolve.
 */
import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { FaultPoint } from "../base/fault.js";
import { FakeEngine } from "../engine/fake.js";
import { openPlatform } from "./platform.js";
import { pointsPolicy } from "./testing.js";
import type { Platform } from "./types.js";

const PROJECT = resolve(import.meta.dirname, "../..");
let compiled: string;
let root: string;

beforeAll(async () => {
  const cache = join(PROJECT, "node_modules/.cache");
  await mkdir(cache, { recursive: true });
  compiled = await mkdtemp(join(cache, "thaw-crash-"));
  root = await mkdtemp(join(tmpdir(), "thaw-crash-"));
  await writeFile(
    join(compiled, "tsconfig.json"),
    JSON.stringify({
      extends: join(PROJECT, "tsconfig.json"),
      compilerOptions: {
        rootDir: join(PROJECT, "src"),
        outDir: join(compiled, "out"),
        incremental: false,
        tsBuildInfoFile: null,
        declaration: false,
        sourceMap: false,
        // Types are the business of `npm run check`; here only the text is needed.
        noCheck: true,
      },
      include: [],
      exclude: [],
      files: [join(PROJECT, "src/platform/index.ts"), join(PROJECT, "src/platform/testing.ts")],
    }),
  );
  await writeFile(join(compiled, "server.mjs"), SERVER);
  const tsc = await run([join(PROJECT, "node_modules/typescript/bin/tsc"), "-p", join(compiled, "tsconfig.json")]);
  expect(tsc, tsc.output).toMatchObject({ code: 0 });
}, 60_000);

afterAll(async () => {
  for (const dir of [compiled, root]) if (dir !== undefined) await rm(dir, { recursive: true, force: true });
});

/** Deploys `kept`, then does what the third argument says to `subject`, with the fault point armed. Prints what was acknowledged. */
const SERVER = `
import { writeSync } from "node:fs";
const { FakeEngine } = await import(new URL("out/engine/fake.js", import.meta.url));
const { openPlatform } = await import(new URL("out/platform/index.js", import.meta.url));
const { pointsPolicy, zipOf } = await import(new URL("out/platform/testing.js", import.meta.url));

const [dataDir, fault, operation] = process.argv.slice(2);
const acknowledged = (what) => writeSync(1, what + "\\n");
const platform = await openPlatform({ dataDir, engine: new FakeEngine(), heatPolicy: pointsPolicy(0, 1) });
const put = async (name, text, update) => {
  await platform.deploy({ name, zip: zipOf({ "index.mjs": text }), update, learn: operation === "learn" && name === "subject" });
  acknowledged("deployed " + name);
  await platform.waitReady(name);
};
await put("kept", "export const handler = 1", false);
if (operation !== "create") await put("subject", "export const handler = 2", false);
process.env.THAW_FAULT = fault;
if (operation === "remove") {
  await platform.remove("subject");
  acknowledged("removed subject");
} else if (operation === "heat") {
  await platform.heat("subject", { requests: 5 });
  acknowledged("heated subject");
} else if (operation === "learn") {
  await platform.invoke("subject", "");
  while (platform.images("subject").length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
  acknowledged("learned subject");
} else await put("subject", "export const handler = 3", operation === "update");
await platform.close();
acknowledged("closed");
`;

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly output: string;
}

function run(args: string[]): Promise<Ended> {
  return new Promise((done, fail) => {
    const child = spawn(process.execPath, args, {
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 30_000,
      killSignal: "SIGTERM",
      // Which one is said later.
      env: { ...process.env, THAW_FAULT: "" },
    });
    let output = "";
    child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on("data", (chunk: Buffer) => (output += chunk.toString()));
    child.on("error", fail);
    child.on("close", (code, signal) => done({ code, signal, output }));
  });
}

/** Of the images that the server knows, once it knows them. */
async function heatsOf(platform: Platform, name: string): Promise<number[]> {
  await platform.waitReady(name);
  return platform.images(name).map(({ heat }) => heat);
}

const CASES: readonly (readonly [FaultPoint, "create" | "update" | "remove" | "heat" | "learn"])[] = [
  ["deploy-code-unpacked", "create"],
  ["deploy-code-renamed", "create"],
  ["deploy-recorded", "create"],
  ["freeze-image-renamed", "create"],
  ["freeze-recorded", "create"],
  ["deploy-code-unpacked", "update"],
  ["deploy-code-renamed", "update"],
  ["deploy-recorded", "update"],
  ["freeze-image-renamed", "update"],
  ["freeze-recorded", "update"],
  ["remove-recorded", "remove"],
  ["freeze-image-renamed", "heat"],
  ["freeze-recorded", "heat"],
  // The raw image is on disk then, too.
  ["freeze-image-renamed", "learn"],
  ["freeze-recorded", "learn"],
];

describe("a server that is killed", () => {
  for (const [fault, operation] of CASES) {
    it(`at ${fault}, during ${operation}: what was acknowledged answers, and nothing else is left`, async () => {
      const dataDir = join(root, `${fault}-${operation}`);
      const server = await run([join(compiled, "server.mjs"), dataDir, fault, operation]);
      expect(server.signal, server.output).toBe("SIGKILL");
      expect(server.output).not.toContain("closed");

      const engine = new FakeEngine();
      // It shall not learn more from what is asked of it here.
      const platform = await openPlatform({ dataDir, engine, heatPolicy: pointsPolicy(0) });
      try {
        const names = platform.list().map((info) => info.name);
        if (operation === "remove") expect(names).toEqual(["kept"]);
        else if (server.output.includes("deployed subject")) expect(names).toEqual(["kept", "subject"]);
        // Recorded, but the answer was lost: it is there whole, or not at all.
        else expect(names).toEqual(fault === "deploy-recorded" ? ["kept", "subject"] : ["kept"]);
        const hotter = (operation === "heat" || operation === "learn") && fault === "freeze-recorded";
        const subject = names.includes("subject") ? await heatsOf(platform, "subject") : [];
        if (hotter) expect(subject).toEqual(operation === "heat" ? [0, 5] : [0, 1]);
        else expect(subject.every((heat) => heat === 0)).toBe(true);
        for (const name of names) {
          expect((await platform.invoke(name, "")).result.functionError).toBeUndefined();
          expect((await platform.waitReady(name)).state).toBe("ready");
          expect((await platform.invoke(name, "", { prefer: { kind: "thaw" } })).start.kind).toBe("thaw");
          const [code, ...more] = readdirSync(join(dataDir, "functions", name));
          expect(more).toEqual([]);
          expect(readdirSync(join(dataDir, "functions", name, code ?? ""))).toEqual(["index.mjs"]);
        }
        expect(readdirSync(join(dataDir, "functions")).sort()).toEqual(names);
        expect(
          readdirSync(join(dataDir, "images"))
            .map((image) => image.split(".")[0])
            .sort(),
        ).toEqual(hotter ? [...names, "subject"] : names);
        // What the function writes next belongs to living functions only.
        expect(readdirSync(join(dataDir, "logs")).every((file) => names.includes(file.replace(".log", "")))).toBe(true);
      } finally {
        await platform.close();
        await engine.close();
      }
      expect(readdirSync(dataDir).filter((name) => name.includes("lock") || name.startsWith(".tmp"))).toEqual([]);
    });
  }

  it("nowhere, closes in good order: the cases above do run to their end otherwise", async () => {
    const server = await run([join(compiled, "server.mjs"), join(root, "none"), "", "update"]);
    expect(server, server.output).toMatchObject({ code: 0, signal: null });
    expect(server.output).toBe("deployed kept\ndeployed subject\ndeployed subject\nclosed\n");
  });
});
