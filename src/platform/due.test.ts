import fc from "fast-check";
import { afterEach, describe, expect, it, vi } from "vitest";
import { type Due, DueQueue } from "./due.js";

interface Item extends Due {
  readonly name: number;
}
const item = (name: number): Item => ({ name, dueMs: 0, dueIndex: -1 });

afterEach(() => {
  vi.useRealTimers();
});

describe("a queue of what is due", () => {
  it("handles things in the order of their times, each once, whatever was moved or removed meanwhile", async () => {
    vi.useFakeTimers();
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(19), fc.option(fc.integer({ min: 1, max: 500 }), { nil: undefined })), { maxLength: 60 }),
        async (changes) => {
          const seen: Item[] = [];
          const queue = new DueQueue<Item>((due) => seen.push(due));
          const items = Array.from({ length: 20 }, (_, name) => item(name));
          const expected = new Map<Item, number>();
          const now = performance.now();
          for (const [index, afterMs] of changes) {
            const one = items[index] as Item;
            if (afterMs === undefined) queue.remove(one);
            else queue.set(one, now + afterMs);
            if (afterMs === undefined) expected.delete(one);
            else expected.set(one, afterMs);
          }
          expect(queue.size).toBe(expected.size);
          await vi.advanceTimersByTimeAsync(600);
          expect(new Set(seen)).toEqual(new Set(expected.keys()));
          expect(seen).toHaveLength(expected.size);
          const times = seen.map((one) => expected.get(one) ?? 0);
          expect(times).toEqual([...times].sort((a, b) => a - b));
          expect(queue.size).toBe(0);
        },
      ),
      { numRuns: 100 },
    );
  });

  it("arms one timer for ten thousand things, and none once it is closed", () => {
    vi.useFakeTimers();
    const queue = new DueQueue<Item>(() => undefined);
    for (let name = 0; name < 10_000; name++) queue.set(item(name), performance.now() + 1_000 + name);
    expect(vi.getTimerCount()).toBe(1);
    queue.close();
    expect(vi.getTimerCount()).toBe(0);
    expect(queue.size).toBe(0);
  });

  it("lets a thing make itself due again", async () => {
    vi.useFakeTimers();
    let times = 0;
    const queue = new DueQueue<Item>((due) => {
      times += 1;
      if (times < 3) queue.set(due, performance.now());
    });
    queue.set(item(1), performance.now() + 10);
    await vi.advanceTimersByTimeAsync(100);
    expect(times).toBe(3);
  });
});
