/**
 * The text form of a demanded start, as the request header `X-Thaw-Prefer` and `thaw invoke --prefer` carry it:
 *
 *     boot | thaw | parked | reuse | wake   [;loader=splice|lazy|reap|…]   [;husk=pooled|fresh]   [;generation=N]   [;dispose]
 */
import { ThawError } from "../base/errors.js";
import { LOADERS, type Loader, type StartKind } from "../engine/types.js";
import type { Preference } from "./types.js";

const KINDS: readonly StartKind[] = ["boot", "thaw", "parked", "reuse", "wake"];
const HUSKS = ["pooled", "fresh"] as const;

/** Reads the text form. INVALID_ARGUMENT, with the part that cannot be used, when it is none. */
export function parsePreference(text: string): { prefer: Preference; dispose: boolean } {
  const [kindText = "", ...parts] = text.split(";").map((part) => part.trim());
  const kind = KINDS.find((known) => known === kindText);
  if (kind === undefined) throw unusable(text, `"${kindText}" is not a kind of start`, `Use one of ${KINDS.join(", ")}`);

  let loader: Loader | undefined;
  let husk: Preference["husk"];
  let generation: number | undefined;
  let dispose = false;
  for (const part of parts) {
    const [key, value = ""] = part.split("=", 2);
    if (part === "dispose") dispose = true;
    else if (key === "loader") {
      loader = LOADERS.find((known) => known === value);
      if (loader === undefined) throw unusable(text, `"${value}" is not a loader`, `Use one of ${LOADERS.join(", ")}`);
      if (kind !== "thaw") throw unusable(text, `a loader makes no sense with ${kind}`, "Use it with thaw");
    } else if (key === "husk") {
      husk = HUSKS.find((known) => known === value);
      if (husk === undefined) throw unusable(text, `"${value}" is not a way to come by a husk`, `Use one of ${HUSKS.join(", ")}`);
      if (kind !== "thaw" && kind !== "boot")
        throw unusable(text, `a husk makes no sense with ${kind}`, "Use it with thaw or boot");
    } else if (key === "generation") {
      if (!/^\d{1,9}$/.test(value)) {
        throw unusable(text, `"${value}" is not a generation`, "Use a whole number; `thaw image ls NAME` lists those that exist");
      }
      if (kind !== "thaw") throw unusable(text, `a generation makes no sense with ${kind}`, "Use it with thaw");
      generation = Number(value);
    } else throw unusable(text, `"${part}" is not an option`, "Use loader=…, husk=…, generation=… or dispose");
  }
  const prefer: Preference = {
    kind,
    ...(loader === undefined ? {} : { loader }),
    ...(husk === undefined ? {} : { husk }),
    ...(generation === undefined ? {} : { generation }),
  };
  return { prefer, dispose };
}

function unusable(text: string, why: string, fix: string): ThawError {
  return new ThawError("INVALID_ARGUMENT", { what: `The preferred start "${text}" cannot be used`, why, fix });
}
