/**
 * The functions of the `memory` sections: hello and 80 MB as everywhere, one of 365 MB, one that writes, and real libraries. What each must answer
 * is computed here, by other means than the function uses.
 *
 * The libraries are development dependencies: a code directory is put together from the handler and copies of `node_modules/<name>` when
 * a run begins. Nothing of the published package needs them.
 */
import { cpSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { ThawError } from "../base/errors.js";
import { PACKAGE_ROOT } from "./environment.js";
import { seededRandom } from "./statistics.js";
import { codeDir, HANDLER, type Language, WORKLOADS, type Workload } from "./workloads.js";

/** A workload and the npm packages that its code needs beside it. */
export interface MemoryWorkload extends Workload {
  readonly packages: readonly string[];
  /** What the name does not say. */
  readonly about: string;
  /** Set when each request touches other pages than the recorded ones: reported, and left out of the means. */
  readonly unstable?: boolean;
}

/** A workload whose code lies in a directory of its name, and the packages that it imports. */
export function makeWorkload(
  name: string,
  language: Language,
  memoryMb: number,
  about: string,
  event: Workload["event"],
  reply: Workload["reply"],
  packages: readonly string[] = [],
): MemoryWorkload {
  return { name, language, dir: codeDir(name), handler: HANDLER[language], memoryMb, event, reply, packages, about };
}

const plain = (workload: Workload, about: string): MemoryWorkload => ({ ...workload, packages: [], about });
const seedOnly = (seed: number) => ({ seed });

/* ---- 365 MB ---- */

const PAGES = 80_000;
const TOUCHED = 7_500;

/** Sum over the first `TOUCHED` distinct pages that the generator names, of the word that lies in each. */
function touchedSum(pagesSeed: number, seed: number): number {
  const random = seededRandom(pagesSeed);
  const pages = new Set<number>();
  while (pages.size < TOUCHED) pages.add((random() * 2 ** 32) % PAGES);
  let sum = BigInt(seed);
  for (const page of pages) sum += BigInt((page * 7_919 + 13) % 2 ** 32);
  return Number(sum % 2n ** 32n);
}

/** Pages that every request of the stable variant touches. */
const FIXED_PAGES = 365;
const big = makeWorkload(
  "node-365mb",
  "node",
  768,
  "7,500 of 80,000 pages at random, the same in each request",
  (seed) => ({ seed, pages: FIXED_PAGES }),
  (seed) => ({ touched: TOUCHED, seed, sum: touchedSum(FIXED_PAGES, seed) }),
);
const bigOther: MemoryWorkload = {
  ...big,
  name: "node-365mb-other",
  about: "7,500 of 80,000 pages at random, others in each request: what no recording knows",
  event: (seed) => ({ seed, pages: seed }),
  reply: (seed) => ({ touched: TOUCHED, seed, sum: touchedSum(seed, seed) }),
  unstable: true,
};

/* ---- one that writes ---- */

const WRITTEN = 2_500;
const writes = makeWorkload("node-writes", "node", 256, "writes 2,500 pages in each request", seedOnly, (seed) => ({
  written: WRITTEN,
  seed,
  sum: WRITTEN * seed + (WRITTEN * (WRITTEN - 1)) / 2,
}));

/* ---- libraries ---- */

function invoice(seed: number): string {
  let total = 0;
  let list = "";
  for (let index = 0; index < 120; index++) {
    const price = ((seed + index) * 7_919) % 1_009;
    total += price;
    list += `<li>${index}: part &lt;${(seed + index) % 97}&gt; ${price > 500 ? "!" : ""}${price}</li>`;
  }
  return `<h1>Order ${seed}</h1><ul>${list}</ul><b>${total}</b>`;
}

/** Each of 60 functions: two calls, the literals 1 and its number, and its default value. */
function tree(seed: number) {
  const values = Array.from({ length: 60 }, (_, index) => ((seed * 31 + index * 17) % 1_000) + index + 1);
  return { seed, functions: 60, calls: 120, sum: values.reduce((sum, value) => sum + value, 0) };
}

function channels(seed: number) {
  const sums = [0, 0, 0, 0];
  for (let y = 0; y < 96; y += 2) {
    for (let x = 0; x < 96; x += 2) {
      for (const [channel, value] of [x * 3 + seed, y * 5 + seed, x * y + seed, 255].entries()) {
        sums[channel] = (sums[channel] ?? 0) + (value % 256);
      }
    }
  }
  return { width: 96, height: 96, seed, sums };
}

function quotients(seed: number) {
  const scale = 10n ** 30n;
  const texts = Array.from({ length: 200 }, (_, index) => {
    const scaled = (BigInt(seed * (index + 1) + 1) * scale) / 7n;
    return `${scaled / scale}.${String(scaled % scale).padStart(30, "0")}`;
  });
  return { seed, last: texts.at(-1), crc: crc32(texts.join("\n")) };
}

/** In the order in which they are measured. */
export const MEMORY_WORKLOADS = {
  helloNode: plain(WORKLOADS.helloNode, "the smallest, Node"),
  helloPython: plain(WORKLOADS.helloPython, "the smallest, Python"),
  node80: plain(WORKLOADS.node80, "index of 200,000 objects, 100 looked up"),
  big,
  bigOther,
  writes,
  template: makeWorkload("node-template", "node", 256, "mustache renders", seedOnly, (seed) => ({ html: invoice(seed) }), [
    "mustache",
  ]),
  parse: makeWorkload("node-parse", "node", 256, "acorn parses", seedOnly, tree, ["acorn"]),
  image: makeWorkload("node-image", "node", 256, "pngjs encodes and decodes", seedOnly, channels, ["pngjs"]),
  decimal: makeWorkload("python-decimal", "python", 256, "_decimal and zlib, compiled extensions", seedOnly, quotients),
} as const satisfies Readonly<Record<string, MemoryWorkload>>;

/** Where packages are looked for: the checkout's own, unless `THAW_BENCH_PACKAGES` names another `node_modules`. */
function packagesDir(): string {
  return process.env["THAW_BENCH_PACKAGES"] ?? join(PACKAGE_ROOT, "node_modules");
}

/**
 * The workload with a code directory of its own below `dir`: the handler, and its packages where the runtime looks for them.
 * @throws ThawError CODE_INVALID when a package is not installed
 */
export function withPackages(workload: MemoryWorkload, dir: string): MemoryWorkload {
  if (workload.packages.length === 0) return workload;
  const code = join(dir, workload.name);
  cpSync(workload.dir, code, { recursive: true });
  for (const name of withDependencies(workload.packages)) {
    const source = join(packagesDir(), name);
    if (!existsSync(join(source, "package.json"))) {
      throw new ThawError("CODE_INVALID", {
        what: `workload ${workload.name} cannot be put together`,
        why: `package ${name} is not in ${packagesDir()}`,
        fix: "npm ci",
      });
    }
    cpSync(source, join(code, "node_modules", name), { recursive: true, dereference: true });
  }
  return { ...workload, dir: code };
}

/** The packages and all that they depend on, as they lie beside each other. What a package brings in a directory of its own goes with it. */
function withDependencies(names: readonly string[]): ReadonlySet<string> {
  const all = new Set(names);
  // A set's iterator also visits what is added on the way.
  for (const name of all) {
    const path = join(packagesDir(), name, "package.json");
    if (!existsSync(path)) continue;
    const { dependencies = {} } = JSON.parse(readFileSync(path, "utf8")) as { dependencies?: Record<string, string> };
    for (const dependency of Object.keys(dependencies)) {
      if (!existsSync(join(packagesDir(), name, "node_modules", dependency))) all.add(dependency);
    }
  }
  return all;
}

/** `mustache 4.2.0` and kin, for reports. */
export function packageVersions({ packages }: MemoryWorkload): string[] {
  return packages.map((name) => {
    const { version } = JSON.parse(readFileSync(join(packagesDir(), name, "package.json"), "utf8")) as { version: string };
    return `${name} ${version}`;
  });
}

/** The functions that `--only` names, in its order; all of them when it was not given. Throws on a name that is not there. */
export function chosenOf<Named extends { readonly name: string }>(
  all: readonly Named[],
  only: readonly string[] | undefined,
): readonly Named[] {
  return (
    only?.map((wanted) => {
      const subject = all.find(({ name }) => name === wanted);
      if (subject !== undefined) return subject;
      throw new Error(`there is no function ${wanted}; there are ${all.map(({ name }) => name).join(", ")}`);
    }) ?? all
  );
}
