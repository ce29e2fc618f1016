/** The folder with a function's code, opened so that it can be mounted at /var/task. */
import { isThawError, ThawError } from "../base/errors.js";
import type { Keeper } from "./keeper.js";
import type { FunctionSpec } from "./types.js";

/** The id that the keeper knows it by. CODE_INVALID names the folder that is not there. */
export async function openTask(keeper: Keeper, { name, codeDir }: FunctionSpec): Promise<number> {
  try {
    return await keeper.openFile(codeDir, "path");
  } catch (error) {
    if (!isThawError(error, "KEEPER_FAILED") || error.details.errno === undefined) throw error;
    throw new ThawError("CODE_INVALID", {
      what: `The code of function "${name}" cannot be opened`,
      why: error.why ?? "",
      fix: "Check that codeDir is the folder that holds it; a function of a server is deployed again",
      cause: error,
    });
  }
}
