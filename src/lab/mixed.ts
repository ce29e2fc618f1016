/**
 * The mixed workload: seven kinds of work, each with a reply that follows from the seed. The right values are computed
 * here, in another process than the one that is checked, and by other means where there are any.
 */
import { createHash, createHmac, pbkdf2Sync } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { type Language, WORKLOADS } from "./workloads.js";

export const OPERATIONS = ["cpu", "allocation", "timers", "files", "threadpool", "child", "crypto"] as const;
export type Operation = (typeof OPERATIONS)[number];

const { dir } = WORKLOADS.helloNode;
const mixed = (language: Language, handler: string) => ({
  name: `mixed-${language}`,
  language,
  dir: dir.replace(/hello-node$/, `mixed-${language}`),
  handler,
  memoryMb: 512,
});

/** The mixed functions, one for each runtime. */
export const MIXED = [mixed("node", "index.handler"), mixed("python", "app.handler")] as const;

const TABLE_LENGTH = 20_000;
const tableValue = (index: number) => ((index % TABLE_LENGTH) * 7_919) % 10_007;

const EXPECTED: Readonly<Record<Operation, (seed: number) => unknown>> = {
  cpu(seed) {
    // BigInt instead of the function's 32-bit tricks: slower, and wrong in other ways if at all.
    let state = BigInt(seed) ^ 0x9e3779b9n;
    for (let step = 0; step < 20_000; step++) {
      state ^= (state << 13n) & 0xffffffffn;
      state ^= state >> 17n;
      state ^= (state << 5n) & 0xffffffffn;
    }
    return Number(state);
  },
  allocation(seed) {
    let sum = 0;
    for (let index = 0; index < 64; index++) sum += (seed + index) & 255;
    for (let index = 0; index < 5_000; index++) sum += tableValue(seed + index * 13);
    return sum;
  },
  timers: () => [true, true, true],
  files(seed) {
    const digest = createHash("sha256")
      .update(Buffer.alloc(100_000, `seed ${seed};`))
      .digest("hex");
    return `${digest}:kept over the freeze`;
  },
  threadpool(seed) {
    return [0, 1, 2, 3].map((lane) => pbkdf2Sync(`${seed}-${lane}`, "salt", 200, 16, "sha256").toString("hex")).join("");
  },
  child: (seed) => seed * 2 + 1,
  crypto: (seed) => createHmac("sha256", "key").update(`${seed}`).digest("hex"),
};

interface Reply {
  readonly op: Operation;
  readonly seed: number;
  readonly calls: number;
  readonly value: unknown;
  readonly wallMs?: number;
  readonly unique?: readonly string[];
}

/** How far a function's wall clock may be from ours: it answers in far less, even on a loaded machine. */
const CLOCK_MS_MAX = 10_000;
const UNIQUE_VALUES = 3;

/** Checks replies of fresh thaws of one image; remembers every random value, because none may come twice. */
export class MixedChecker {
  readonly #seen = new Set<string>();

  /** `calls` is what a fresh thaw must count: the image's heat and this request. Returns what is wrong, or undefined. */
  check(op: Operation, seed: number, calls: number, payload: string, nowMs: number): string | undefined {
    let reply: Reply;
    try {
      reply = JSON.parse(payload) as Reply;
    } catch {
      return `not JSON: ${payload.slice(0, 200)}`;
    }
    const got = { op: reply.op, seed: reply.seed, calls: reply.calls, value: reply.value };
    const expected = { op, seed, calls, value: EXPECTED[op](seed) };
    if (!isDeepStrictEqual(got, expected)) return `${payload.slice(0, 300)} instead of ${JSON.stringify(expected)}`;
    if (op === "timers" && !(Math.abs((reply.wallMs ?? 0) - nowMs) < CLOCK_MS_MAX)) {
      return `its wall clock says ${reply.wallMs}, ours ${Math.round(nowMs)}`;
    }
    return op === "crypto" ? this.#checkUnique(reply.unique) : undefined;
  }

  #checkUnique(values: readonly string[] | undefined): string | undefined {
    if (values?.length !== UNIQUE_VALUES) return `${UNIQUE_VALUES} random values expected, got ${JSON.stringify(values)}`;
    const repeated = values.filter((value) => this.#seen.has(value));
    for (const value of values) this.#seen.add(value);
    return repeated.length > 0 ? `random values that another thaw had: ${repeated.join(", ")}` : undefined;
  }
}
