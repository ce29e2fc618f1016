import { expect, it } from "vitest";
import type { Manifest } from "./manifest.js";
import { checkBase } from "./store.js";

it("a base's page space that is cut short where it holds nothing is told by its length: its digest is that which was written", () => {
  const manifest = { base: { id: "b", digest: "0x7a", bytes: "8192" } } as unknown as Manifest;
  expect(() => checkBase(manifest, { digest: "0x7a", bytes: "8192" }, "/dir")).not.toThrow();
  expect(() => checkBase(manifest, { digest: "0x7a", bytes: "4096" }, "/dir")).toThrow(
    "the page space of its base image b is 4096 bytes long where 8192 were written",
  );
  expect(() => checkBase(manifest, { digest: "0x7b", bytes: "8192" }, "/dir")).toThrow(
    "the digest of its base image b is 0x7b where 0x7a was written",
  );
});
