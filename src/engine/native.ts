/** Where the native helpers lie, and how they answer. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ThawError } from "../base/errors.js";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));

/** Absolute paths of what `npm run build` made, and of the runtimes' own files. */
export interface NativePaths {
  readonly keeper: string;
  readonly husk: string;
  readonly extractor: string;
  /** Preload shim for Node (docs/design/shim.md). */
  readonly shim: string;
  /** The bootstraps that run inside functions; plain JavaScript and Python, not compiled. */
  readonly runtimeDir: string;
}

/** Paths of the helpers; NATIVE_MISSING when they were not built. */
export function nativePaths(): NativePaths {
  const built = (name: string): string => join(ROOT, "native/build", name);
  const paths = {
    keeper: built("keeper"),
    husk: built("husk"),
    extractor: built("extractor"),
    shim: built("shim.so"),
    runtimeDir: join(ROOT, "src/runtime"),
  };
  const missing = Object.values(paths).filter((path) => !existsSync(path));
  if (missing.length > 0) {
    throw new ThawError("NATIVE_MISSING", {
      what: "the native helpers were not built",
      why: `${missing.join(", ")} ${missing.length === 1 ? "does" : "do"} not exist`,
      fix: "install gcc and make and run `npm run build`",
    });
  }
  return paths;
}

/** The extractor's last line: one JSON object. */
export function parseReply(stdout: Buffer): { readonly ok: boolean } & Readonly<Record<string, unknown>> {
  const line = stdout.toString("utf8").trimEnd().split("\n").at(-1) ?? "";
  try {
    return JSON.parse(line) as { ok: boolean };
  } catch {
    return {
      ok: false,
      code: "failed",
      why: line === "" ? "the extractor ended without a word" : `the extractor said ${JSON.stringify(line.slice(0, 200))}`,
    };
  }
}
