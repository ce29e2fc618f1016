import { describe, expect, it } from "vitest";
import { rehearse } from "./rehearsal.js";
import type { Image, Instance, ThawOptions } from "./types.js";

const IMAGE = { spec: { timeoutMs: 60_000 } } as Image;

/** An engine whose clones answer as they are told, or not until they are ended. */
function engineWhose(answer: (payload: Buffer | string) => "well" | "badly" | "never") {
  const asked: string[] = [];
  const husks: ThawOptions["husk"][] = [];
  let living = 0;
  const thaw = async (_image: Image, { husk }: ThawOptions = {}): Promise<Instance> => {
    husks.push(husk);
    living += 1;
    let ended = (): void => undefined;
    const gone = new Promise<void>((resolve) => {
      ended = resolve;
    });
    const invoke = async (payload: Buffer | string): Promise<object> => {
      asked.push(String(payload));
      const how = answer(payload);
      if (how === "never") await gone;
      return how === "well" ? {} : { functionError: "Unhandled" };
    };
    let disposed = false;
    const dispose = async (): Promise<void> => {
      if (!disposed) living -= 1;
      disposed = true;
      ended();
    };
    return { start: { recording: true }, invoke, dispose } as unknown as Instance;
  };
  return { engine: { thaw }, asked, husks, living: () => living };
}

describe("rehearsing", () => {
  it("makes starts of its own, in husks of their own, and leaves none", async () => {
    const { engine, asked, husks, living } = engineWhose(() => "well");
    await rehearse(engine, IMAGE, (index) => `${index}`);
    expect(asked).toEqual(["0", "1", "2", "3", "4"]);
    expect(new Set(husks)).toEqual(new Set(["fresh"]));
    expect(living()).toBe(0);
  });

  it("ends with a request that fails", async () => {
    const { engine, asked, living } = engineWhose((payload) => (payload === "1" ? "badly" : "well"));
    await rehearse(engine, IMAGE, (index) => `${index}`);
    expect([asked, living()]).toEqual([["0", "1"], 0]);
  });

  it("ends at once when nobody wants it any more, in the middle of a request and before the first", async () => {
    const { engine, asked, living } = engineWhose(() => "never");
    const ending = new AbortController();
    const rehearsing = rehearse(engine, IMAGE, (index) => `${index}`, ending.signal);
    await expect.poll(() => asked.length).toBe(1);
    ending.abort();
    await rehearsing;
    await rehearse(engine, IMAGE, (index) => `${index}`, ending.signal);
    expect([asked, living()]).toEqual([["0"], 0]);
  });
});
