/** How much memory a process has, from /proc. */
import { constants } from "node:os";
import { isThawError } from "../base/errors.js";
import type { Husk } from "./husk.js";
import type { Keeper } from "./keeper.js";

const { ENOENT, ESRCH } = constants.errno;

/**
 * Resident bytes of a process: its own, of those the changed ones, and those that others map too. Rejects with `ended` when it has, and with KEEPER_FAILED
 * where the process keeps the kernel from looking. Asked of the keeper, whose threads may wait for that; the server's few are everybody's.
 */
export async function residentMemory(
  keeper: Keeper,
  husk: Husk,
  ended: () => Error,
): Promise<{ privateBytes: number; dirtyBytes: number; sharedBytes: number }> {
  const text = await keeper.memory(husk.host.pid).catch(async (error: unknown) => {
    if (!isThawError(error, "KEEPER_FAILED") || (error.details.errno !== ENOENT && error.details.errno !== ESRCH)) throw error;
    await husk.gone();
    throw ended();
  });
  const sum = (pattern: RegExp): number =>
    [...text.matchAll(pattern)].reduce((total, match) => total + Number(match[1]) * 1024, 0);
  return {
    privateBytes: sum(/^Private_(?:Clean|Dirty):\s+(\d+)/gm),
    dirtyBytes: sum(/^Private_Dirty:\s+(\d+)/gm),
    sharedBytes: sum(/^Shared_(?:Clean|Dirty):\s+(\d+)/gm),
  };
}
