import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { untilAccepted } from "./until-accepted.js";

const REFUSED = { ok: false, code: "refused", why: "it holds /proc/7/stat open (descriptor 4)" };

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

/** Says one after the other, the last one again and again; each takes so long. */
function extractor(replies: readonly object[], ms = 10) {
  return vi.fn(async () => {
    await new Promise((resolve) => setTimeout(resolve, ms));
    const said = JSON.stringify(replies[Math.min(extract.mock.calls.length, replies.length) - 1]);
    return {
      ended: { code: 0, signal: undefined, stdout: Buffer.from(said) },
      heldMs: extract.mock.calls.length,
    };
  });
}
let extract: ReturnType<typeof extractor>;

async function accepted() {
  const told = untilAccepted(extract);
  await vi.runAllTimersAsync();
  return told;
}

describe("what is refused", () => {
  it("is tried again, for it may have been so for a moment", async () => {
    extract = extractor([REFUSED, REFUSED, { ok: true }]);
    expect(await accepted()).toMatchObject({ reply: { ok: true }, heldMs: 3 });
  });

  it("is refused when nothing changes", async () => {
    extract = extractor([REFUSED]);
    expect(await accepted()).toMatchObject({ reply: REFUSED });
    expect(extract).toHaveBeenCalledTimes(3);
  });

  it("is not tried again when the refusal waited for the function", async () => {
    extract = extractor([REFUSED, { ok: true }], 5_000);
    expect(await accepted()).toMatchObject({ reply: REFUSED });
  });

  it.each(["busy", "exhausted", "failed", "ended"])("is told apart from what is not a refusal (%s)", async (code) => {
    extract = extractor([{ ok: false, code, why: "" }, { ok: true }]);
    expect(await accepted()).toMatchObject({ reply: { ok: false, code } });
  });
});
