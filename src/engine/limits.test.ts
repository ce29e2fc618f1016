import { expect, it } from "vitest";
import { ThawError } from "../base/errors.js";
import type { LimitWrite } from "../linux/cgroups.js";
import { Husk } from "./husk.js";
import type { Keeper } from "./keeper.js";
import { Limits } from "./limits.js";
import type { FunctionSpec } from "./types.js";

const megabytes = (memoryMb: number) => ({ memoryMb }) as FunctionSpec;

it("the limits of a husk are written once, anew for another memory size, and again when one could not be written while it waited", () => {
  const written: (string | undefined)[] = [];
  const keeper = {
    limits: (_: number, writes: readonly LimitWrite[]) => written.push(writes.find(({ file }) => file === "memory.max")?.value),
  } as unknown as Keeper;
  const limits = new Limits(keeper, { version: "v2", mounts: {}, swapLimit: true });
  const husk = new Husk(7);
  for (const memoryMb of [128, 128, 512, 512, 128]) limits.set(husk, megabytes(memoryMb));
  const mib = 1024 * 1024;
  expect(written.splice(0)).toEqual([128, 512, 128].map((memoryMb) => String(memoryMb * mib)));
  husk.onFailure(new ThawError("KEEPER_FAILED", { what: "cannot write" }));
  limits.set(husk, megabytes(128));
  limits.set(new Husk(8), megabytes(128));
  expect(written).toHaveLength(2);
});
