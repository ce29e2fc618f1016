import { describe, expect, it } from "vitest";
import { type HibernateTools, Hibernation } from "./hibernate.js";
import type { LiveInstance } from "./instance.js";
import type { Prefetched } from "./keeper-messages.js";
import type { StartResult } from "./types.js";

describe("a wake", () => {
  it("that is told late what it read changes nothing of the next one", async () => {
    const reads: ((told: Prefetched) => void)[] = [];
    const keeper = { prefetchEncoded: () => new Promise<Prefetched>((resolve) => reads.push(resolve)) };
    const start: StartResult = { kind: "boot", us: 1, phases: [], waitUs: 0, prefetchedPages: 0 };
    const instance = { start, alive: true, busy: false, hostPid: process.pid };
    const hibernation = new Hibernation({ keeper } as unknown as HibernateTools, instance as unknown as LiveInstance);
    const wake = (): Promise<StartResult> => {
      hibernation.state = "hibernated";
      return hibernation.wake();
    };
    const first = wake();
    const ofFirst = reads.splice(0);
    const second = wake();
    for (const tell of reads) tell({ us: 20, pages: 3 });
    await second;
    for (const tell of ofFirst) tell({ us: 9_000, pages: 400 });
    await first;
    expect(instance.start).toMatchObject({ kind: "wake", prefetchedPages: 6 });
    expect(instance.start.phases).toContainEqual({ name: "prefetch", us: 40 });
  });

  it("for a request has that wait until the disk was asked for its code; one ahead of requests has nobody wait", () => {
    const asked: unknown[] = [];
    const keeper = { prefetchEncoded: (_ranges: unknown, options?: unknown) => new Promise(() => asked.push(options)) };
    const start: StartResult = { kind: "boot", us: 1, phases: [], waitUs: 0, prefetchedPages: 0 };
    const instance = { id: 7, start, alive: true, busy: false, hostPid: process.pid };
    const hibernation = new Hibernation({ keeper } as unknown as HibernateTools, instance as unknown as LiveInstance);
    hibernation.state = "hibernated";
    expect(hibernation.requested()).toBeDefined();
    hibernation.state = "hibernated";
    void hibernation.wake();
    expect(asked).toEqual([{ ahead: 7 }, undefined, { ahead: 0 }, undefined]);
  });
});
