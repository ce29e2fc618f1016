/**
 * Seven kinds of work, chosen by `event.op`. Every reply can be computed from `event.seed` alone, so the caller knows
 * a wrong one. What exists before the freeze and must survive it: pool threads, a table in the heap, a file in /tmp.
 * `calls` counts the requests this process has answered: in a fresh thaw of one image it is always the same.
 */
import { execFile } from "node:child_process";
import { createHash, createHmac, pbkdf2, randomBytes, randomUUID } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { readFile, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { gunzip, gzip } from "node:zlib";

const derive = promisify(pbkdf2);
const KEPT = join(tmpdir(), "thaw-lab-kept.txt");
const table = Array.from({ length: 20_000 }, (_, index) => ({ index, value: (index * 7919) % 10_007 }));
await derive("warm the thread pool", "salt", 1, 32, "sha256");
if (!existsSync(KEPT)) writeFileSync(KEPT, "kept over the freeze");
let calls = 0;

const operations = {
  cpu: async (seed) => {
    let state = (seed ^ 0x9e3779b9) >>> 0;
    for (let step = 0; step < 20_000; step++) {
      state = (state ^ (state << 13)) >>> 0;
      state = (state ^ (state >>> 17)) >>> 0;
      state = (state ^ (state << 5)) >>> 0;
    }
    return { value: state };
  },
  allocation: async (seed) => {
    const buffers = Array.from({ length: 64 }, (_, index) => Buffer.alloc(65_536, (seed + index) & 255));
    let sum = 0;
    for (const [index, buffer] of buffers.entries()) sum += buffer[(seed * 31 + index * 977) % 65_536];
    const objects = Array.from({ length: 5_000 }, (_, index) => ({ at: (seed + index * 13) % table.length }));
    for (const object of objects) sum += table[object.at].value;
    return { value: sum };
  },
  timers: async () => {
    const late = async (ms) => {
      const before = performance.now();
      await sleep(ms);
      const elapsed = performance.now() - before;
      // A timer may fire up to 1 ms early by this clock, and late by whatever the machine is busy with.
      return elapsed > ms - 1 && elapsed < 5_000;
    };
    const inTime = await Promise.all([6, 2, 4].map(late));
    await new Promise((resolve) => setImmediate(resolve));
    return { value: inTime, wallMs: Date.now() };
  },
  files: async (seed) => {
    const path = join(tmpdir(), `thaw-lab-${seed}.bin`);
    await writeFile(path, Buffer.alloc(100_000, `seed ${seed};`));
    const digest = createHash("sha256")
      .update(await readFile(path))
      .digest("hex");
    await unlink(path);
    return { value: `${digest}:${readFileSync(KEPT, "utf8")}` };
  },
  threadpool: async (seed) => {
    const keys = await Promise.all([0, 1, 2, 3].map((lane) => derive(`${seed}-${lane}`, "salt", 200, 16, "sha256")));
    const text = keys.map((key) => key.toString("hex")).join("");
    const back = await promisify(gunzip)(await promisify(gzip)(Buffer.from(text)));
    return { value: back.toString() };
  },
  child: async (seed) => {
    const { stdout } = await promisify(execFile)(process.execPath, ["-p", `${seed} * 2 + 1`]);
    return { value: Number(stdout) };
  },
  crypto: async (seed) => ({
    value: createHmac("sha256", "key").update(`${seed}`).digest("hex"),
    unique: [randomBytes(16).toString("hex"), randomUUID(), `${Math.random()}`],
  }),
};

export const handler = async (event) => {
  calls += 1;
  const operation = operations[event.op];
  if (operation === undefined) throw new Error(`no operation "${event.op}"`);
  return { op: event.op, seed: event.seed, calls, ...(await operation(event.seed)) };
};
