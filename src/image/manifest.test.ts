import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isThawError, type ThawError } from "../base/errors.js";
import { factsSchema } from "./facts.js";
import { decodeManifest, decodeManifestInTurns, encodeManifest, IMAGE_VERSION } from "./manifest.js";
import { manifestArbitrary, sampleFacts, sampleManifest } from "./testing.js";

const PATH = "/images/x/manifest";

function refusalOf(bytes: Buffer): ThawError {
  try {
    decodeManifest(bytes, PATH);
  } catch (error) {
    if (isThawError(error)) return error;
    throw error;
  }
  throw new Error(`a damaged manifest of ${bytes.length} bytes was taken for a whole one`);
}

function withHeader(json: string, version: number | string = IMAGE_VERSION): Buffer {
  const body = gzipSync(json);
  const digest = createHash("sha256").update(body).digest("hex");
  return Buffer.concat([Buffer.from(`thaw-manifest ${version} ${digest} ${body.length}\n`), body]);
}

describe("a manifest", () => {
  it("is read as it was written", () => {
    fc.assert(
      fc.property(manifestArbitrary, (manifest) => {
        const read = decodeManifest(encodeManifest(manifest), PATH);
        expect(read).toEqual({ ...manifest, facts: factsSchema.parse(manifest.facts) });
      }),
    );
  });

  it("of a former version does not tell how hot the code was", () => {
    const { code, ...former } = sampleManifest();
    expect(code).toBeUndefined();
    expect("code" in decodeManifest(encodeManifest(former), PATH)).toBe(false);
  });

  it.each([
    ["a negative count", { functions: 1, tiers: { plain: -1 } }],
    ["a text", { functions: "many", tiers: {} }],
    ["a long name", { functions: 1, tiers: { [`${"x".repeat(17)}`]: 1 } }],
    ["many tiers", { functions: 1, tiers: Object.fromEntries([..."abcdefghi"].map((name) => [name, 0])) }],
  ])("is refused when its code's heat has %s", (_name, code) => {
    const bytes = encodeManifest({ ...sampleManifest(), code: code as never });
    expect(refusalOf(bytes).code).toBe("IMAGE_DAMAGED");
  });

  it("keeps every bit of a 64-bit number", () => {
    const manifest = sampleManifest({
      facts: { ...sampleManifest().facts, digest: "0xfedcba9876543211", pageSpaceBytes: "0xfedcba9876543211" },
    });
    expect(decodeManifest(encodeManifest(manifest), PATH).facts.pageSpaceBytes).toBe(0xfedcba9876543211n);
  });

  it("is refused when cut short at any byte", () => {
    const whole = encodeManifest(sampleManifest());
    for (let length = 0; length < whole.length; length++) {
      const error = refusalOf(whole.subarray(0, length));
      expect(error.code).toBe("IMAGE_DAMAGED");
      expect(error.message, `${length} bytes`).toMatch(/offset \d+/);
      expect(error.message).toContain(PATH);
    }
  });

  it("is refused with any one bit flipped", () => {
    const whole = encodeManifest(sampleManifest());
    for (let bit = 0; bit < whole.length * 8; bit++) {
      const bytes = Buffer.from(whole);
      bytes.writeUInt8(bytes.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
      // A flipped version is a format that nobody knows.
      const error = refusalOf(bytes);
      expect(["IMAGE_DAMAGED", "IMAGE_MISMATCH"], `bit ${bit}`).toContain(error.code);
    }
  });

  it("is refused with anything added, removed or exchanged", () => {
    fc.assert(
      fc.property(
        manifestArbitrary,
        fc.nat(),
        fc.nat({ max: 64 }),
        fc.uint8Array({ minLength: 1, maxLength: 64 }),
        (manifest, where, removed, added) => {
          const whole = encodeManifest(manifest);
          const at = where % (whole.length + 1);
          const changed = Buffer.concat([whole.subarray(0, at), added, whole.subarray(at + removed)]);
          fc.pre(!changed.equals(whole));
          expect(["IMAGE_DAMAGED", "IMAGE_MISMATCH"]).toContain(refusalOf(changed).code);
        },
      ),
    );
  });

  it("of another format is refused as such, with both versions", () => {
    const error = refusalOf(withHeader(JSON.stringify(sampleManifest()), 7));
    expect([error.code, error.message]).toEqual([
      "IMAGE_MISMATCH",
      `the image ${PATH} has format 7. this thaw reads format ${IMAGE_VERSION}. the function boots and is frozen anew`,
    ]);
  });

  it("whose checksum holds but whose content does not is refused with the member's name", () => {
    const { facts: _facts, ...rest } = sampleManifest();
    expect(refusalOf(withHeader(JSON.stringify(rest))).why).toContain("facts");
    expect(refusalOf(withHeader(JSON.stringify(sampleManifest({ generation: -1 })))).why).toContain("generation");
    for (const json of ["", "{", "null", "[]", "1", '"manifest"', "{}"])
      expect(refusalOf(withHeader(json)).code, json).toBe("IMAGE_DAMAGED");
  });

  it.each([
    ["registers", { regs: "00".repeat(215) }],
    ["an odd number of digits", { xstate: "0" }],
    ["an address that is no number", { tidAddress: "12" }],
    ["an address of more than 64 bits", { tidAddress: `0x1${"0".repeat(16)}` }],
  ])("with damaged facts (%s) is refused", (_title, change) => {
    const manifest = sampleManifest();
    const [main] = manifest.facts.threads;
    if (main === undefined) throw new Error("no thread");
    manifest.facts.threads[0] = { ...main, ...change };
    expect(refusalOf(encodeManifest(manifest)).why).toContain("threads");
  });
});

describe("the manifest of a process with thousands of mappings", () => {
  type Regions = ReturnType<typeof sampleFacts>["regions"];

  function manifestOf(change: (regions: Regions) => void = () => undefined): Buffer {
    const regions: Regions = Array.from({ length: 2_500 }, (_, index) => ({
      kind: "anon",
      start: `0x${(0x7f0000000000 + index * 8192).toString(16)}`,
      end: `0x${(0x7f0000001000 + index * 8192).toString(16)}`,
      prot: index % 2,
    }));
    change(regions);
    return encodeManifest(sampleManifest({ facts: sampleFacts({ regions }) }));
  }

  it("is read as that of any other, while others have their turn", async () => {
    const bytes = manifestOf();
    let turns = 0;
    let reading = true;
    const count = (): void => {
      turns++;
      if (reading) setImmediate(count);
    };
    setImmediate(count);
    const manifest = await decodeManifestInTurns(bytes, PATH);
    reading = false;
    expect(turns).toBeGreaterThanOrEqual(3);
    expect(manifest).toEqual(decodeManifest(bytes, PATH));
  });

  it("is refused with the same words, where the mapping is that is wrong", async () => {
    const bytes = manifestOf((regions) => {
      regions[2_100] = { ...regions[2_100], end: "nowhere" } as Regions[number];
    });
    const refused = refusalOf(bytes);
    expect(refused.why).toContain("facts.regions[2100].end");
    const inTurns = await decodeManifestInTurns(bytes, PATH).catch((error: unknown) => error);
    expect(inTurns).toEqual(refused);
  });

  it.each(["null", "[]", "1", '{"facts":null}', '{"facts":{"regions":7}}'])("is refused where it holds only %s", async (json) => {
    await expect(decodeManifestInTurns(withHeader(json), PATH)).rejects.toThrow(refusalOf(withHeader(json)).message);
  });
});
