import type { FastifyInstance } from "fastify";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openTestGateway, type TestPlatform, testZip } from "./testing.js";

let test: TestPlatform;
let app: FastifyInstance;

beforeEach(async () => {
  ({ app, ...test } = await openTestGateway());
});
afterEach(() => test.close());

const deploy = async (name: string) => {
  await app.inject({
    method: "POST",
    url: `/thaw/v1/functions/${name}`,
    payload: testZip(),
    headers: { "content-type": "application/zip" },
  });
  await app.inject(`/thaw/v1/functions/${name}/ready`);
};
const invoke = (name: string, headers = {}) =>
  app.inject({ method: "POST", url: `/2015-03-31/functions/${name}/invocations`, headers });

const LINE = /^([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (-?[\d.e+-]+)$/;

/** Samples by name and labels; throws at a line that the format does not have. */
function parse(text: string): Map<string, number> {
  const samples = new Map<string, number>();
  const declared = new Set<string>();
  for (const line of text.trimEnd().split("\n")) {
    const head = /^# (HELP|TYPE) ([a-z_]+) (.+)$/.exec(line);
    if (head !== null) {
      if (head[1] === "TYPE") {
        expect(declared, "a family is told once").not.toContain(head[2]);
        declared.add(head[2] ?? "");
      }
      continue;
    }
    const [, name = "", labels = "", value] = LINE.exec(line) ?? [];
    expect(name, line).not.toBe("");
    expect([...declared].at(-1), "samples stand below their family").toBe(
      declared.has(name) ? name : name.replace(/_(bucket|sum|count)$/, ""),
    );
    expect(samples.has(`${name}{${labels}}`), line).toBe(false);
    samples.set(`${name}{${labels}}`, Number(value));
  }
  expect(text.endsWith("\n")).toBe(true);
  return samples;
}

describe("GET /metrics", () => {
  it("tells Prometheus what was counted, by function and by kind of start", async () => {
    await deploy("hello");
    await deploy("silent");
    await invoke("hello", { "x-thaw-prefer": "boot" });
    await invoke("hello", { "x-thaw-prefer": "reuse" });
    const reply = await app.inject("/metrics");
    expect(reply.headers["content-type"]).toBe("text/plain; version=0.0.4; charset=utf-8");
    const samples = parse(reply.body);
    expect(samples.get('faas_invocations_total{faas_name="hello"}')).toBe(2);
    expect(samples.get('faas_errors_total{faas_name="hello"}')).toBe(0);
    expect(samples.get('faas_starts_total{faas_name="hello",kind="boot"}')).toBe(1);
    expect(samples.get('faas_starts_total{faas_name="hello",kind="reuse"}')).toBe(1);
    expect(samples.get('faas_coldstarts_total{faas_name="hello"}')).toBe(1);
    expect(samples.get('faas_freezes_total{faas_name="silent"}')).toBe(1);
    expect(samples.get('faas_instances{state="idle"}')).toBe(1);
    expect(samples.get('faas_husks{level="generic"}')).toBeTypeOf("number");
  });

  it("has histograms whose buckets grow to the count", async () => {
    await deploy("hello");
    await invoke("hello", { "x-thaw-prefer": "boot" });
    const samples = parse((await app.inject("/metrics")).body);
    const started = test.platform.metrics().startMs.boot;
    for (const [family, labels, sumMs] of [
      ["faas_invoke_duration_seconds", 'faas_name="hello"', test.platform.metrics().handlerMs?.sum],
      ["faas_start_duration_seconds", 'kind="boot"', started?.sum],
    ] as const) {
      const buckets = [...samples].filter(([name]) => name.startsWith(`${family}_bucket{${labels},`)).map(([, value]) => value);
      expect(buckets.length).toBeGreaterThan(10);
      expect(buckets).toEqual([...buckets].sort((a, b) => a - b));
      expect(buckets.at(-1)).toBe(1);
      expect(samples.get(`${family}_bucket{${labels},le="+Inf"}`)).toBe(1);
      expect(samples.get(`${family}_count{${labels}}`)).toBe(1);
      expect(samples.get(`${family}_sum{${labels}}`)).toBeCloseTo((sumMs ?? Number.NaN) / 1000, 9);
    }
  });

  it("counts errors apart from what was answered", async () => {
    await deploy("hello");
    test.engine.handler = () => {
      throw new Error("no");
    };
    await invoke("hello");
    const samples = parse((await app.inject("/metrics")).body);
    expect(samples.get('faas_invocations_total{faas_name="hello"}')).toBe(0);
    expect(samples.get('faas_errors_total{faas_name="hello"}')).toBe(1);
  });
});
