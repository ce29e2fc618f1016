/**
 * Generations: each image is frozen from a clone of the one before. None may cost a start more than the first, whatever its age, and none
 * needs the images that it came from.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { FunctionSpec, Image, Instance } from "../src/engine/index.js";
import { compileThaw, readImage } from "../src/image/index.js";
import { ask, useBench } from "./support/bench.js";
import { hostPid } from "./support/world.js";

const bench = useBench();

/** Each request changes a part of what there is, adds some, and answers with a sum over all. */
const node = (rows: number): string => `
const rows = Array.from({ length: ${rows} }, (_, i) => ({ i, text: "row " + i }));
let count = 0;
exports.handler = async () => {
  count++;
  for (let i = count % 16; i < rows.length; i += 16) rows[i] = { i: rows[i].i + 1, text: "changed " + count };
  for (let i = 0; i < 10; i++) rows.push({ i, text: "new " + count });
  return [count, rows.length, rows.reduce((sum, row) => (sum + row.i * row.text.length) % 1000003, 0)];
};`;
const python = (rows: number): string => `
rows = [{"i": i, "text": "row %d" % i} for i in range(${rows})]
count = 0
def handler(event, context):
    global count
    count += 1
    for i in range(count % 16, len(rows), 16): rows[i] = {"i": rows[i]["i"] + 1, "text": "changed %d" % count}
    rows.extend({"i": i, "text": "new %d" % count} for i in range(10))
    return [count, len(rows), sum(row["i"] * len(row["text"]) for row in rows) % 1000003]`;

const LAST_GENERATION = 5;
const REQUESTS = 4;
/** Alone, most of its memory is its own; on a base, most is the base's, or nothing would be shared. */
const ROWS = { alone: 60_000, shared: 500 };
/** An allocator may need a few more mappings for what was added. */
const GROWTH_MAX = 1.25;

interface Shape {
  readonly mappings: number;
  readonly files: number;
  readonly regions: number;
  readonly entries: number;
  readonly bytes: number;
}

/** What a start from this image costs, and what the clone looks like. */
async function shapeOf(image: Image, clone: Instance): Promise<Shape> {
  const lines = readFileSync(`/proc/${hostPid(clone)}/maps`, "utf8")
    .trimEnd()
    .split("\n");
  const { manifest } = await readImage(image.dir);
  const program = compileThaw(manifest.facts, { contents: Buffer.alloc(0), source: "lazy", runtime: true });
  return {
    mappings: lines.length,
    files: new Set(lines.map((line) => line.split(/\s+/)[4]).filter((inode) => inode !== "0")).size,
    regions: manifest.facts.regions.length,
    entries: program.labels.length,
    bytes: image.bytesOnDisk,
  };
}

describe.each([
  ["node", false],
  ["node", true],
  ["python", false],
  ["python", true],
] as const)("generations of a %s function, on a shared base: %s", (language, base) => {
  it("cost a start no more than the first, and need no other", { timeout: 120_000 }, async () => {
    const rows = base ? ROWS.shared : ROWS.alone;
    const spec: FunctionSpec = language === "node" ? bench.node(node(rows)) : bench.python(python(rows));
    let instance = await bench.engine.boot(spec, { base });
    const shapes: Shape[] = [];
    let image: Image | undefined;
    for (let generation = 0; generation <= LAST_GENERATION; generation++) {
      for (let request = 0; request < REQUESTS; request++) await ask(instance);
      const former = image;
      image = await instance.freeze({ then: "end" });
      expect([image.generation, image.heat]).toEqual([generation, (generation + 1) * REQUESTS]);
      if (generation === 0) expect((await readImage(image.dir)).manifest.base !== undefined).toBe(base);
      if (former !== undefined) await bench.engine.removeImage(former);
      instance = await bench.engine.thaw(image, { loader: "lazy" });
      shapes.push(await shapeOf(image, instance));
    }
    const [first, second, ...rest] = shapes;
    assert(first !== undefined && second !== undefined && rest.length === LAST_GENERATION - 1);
    for (const [index, shape] of rest.entries()) {
      expect(shape.files, `files that generation ${index + 2} maps`).toBeLessThanOrEqual(Math.max(first.files, second.files));
      for (const what of ["mappings", "regions", "entries", "bytes"] as const)
        expect(shape[what], `${what} of generation ${index + 2}`).toBeLessThanOrEqual(
          Math.max(first[what], second[what]) * GROWTH_MAX,
        );
    }
    const last = await ask(instance);
    await instance.dispose();
    if (image !== undefined) await bench.engine.removeImage(image);
    const plain = await bench.engine.boot(spec);
    for (let request = 0; request < (LAST_GENERATION + 1) * REQUESTS; request++) await ask(plain);
    expect(last).toEqual(await ask(plain));
    await plain.dispose();
  });
});
