/** Booting: a husk executes the interpreter, the runtime loads the handler and says that it is ready. */

import { monotonicNs } from "../base/clock.js";
import { isThawError, ThawError } from "../base/errors.js";
import { BOOT_FD_BASE, BOOT_PASSES, compileBoot } from "../image/index.js";
import { launch } from "../runtime/launch.js";
import type { LiveInstance } from "./instance.js";
import { notTheReply, PLATFORM_ERRORS } from "./instance-end.js";
import type { Keeper } from "./keeper.js";
import type { PassedFd } from "./keeper-messages.js";
import { usBetween } from "./parts.js";
import { runStage, type StageStep } from "./stages.js";
import { interpreterOf, type Template } from "./templates.js";
import type { Phase, StartResult } from "./types.js";

/** What is known of a boot when it begins. */
export function bootBegins(pooled: boolean): StartResult {
  return { kind: "boot", us: 0, phases: [], waitUs: 0, husk: pooled ? "generic" : "fresh", prefetchedPages: 0 };
}

function bootStep(program: ReturnType<typeof compileBoot>, file: number, task: number): StageStep {
  const fds: PassedFd[] = [];
  fds[BOOT_PASSES.control] = { kind: "control" };
  fds[BOOT_PASSES.log] = { kind: "log" };
  fds[BOOT_PASSES.task] = { kind: "tree", file: task };
  return { name: "boot", labels: () => program.labels, request: () => ({ program: file, fds, fdBase: BOOT_FD_BASE }) };
}

/** Boots the function of `instance`, or the bare runtime for a `base`, in its husk, unless `signal` ends it. Returns the phases; INIT_FAILED with the function's own error and what it wrote; CODE_INVALID. */
export async function bootInstance(
  keeper: Keeper,
  instance: LiveInstance,
  template: Template,
  { base = false, signal }: { readonly base?: boolean; readonly signal?: AbortSignal | undefined } = {},
): Promise<Phase[]> {
  const began = monotonicNs();
  const { spec } = instance;
  const program = compileBoot(launch({ ...spec, ...interpreterOf(template), base }));
  const file = keeper.fileBytes(program.bytes);
  let task: number | undefined;
  try {
    task = await keeper.openTask(spec);
    // Asked for first: where the server was held up, the stage's report and the greeting come in one read.
    const loaded = ready(instance, signal);
    loaded.catch(() => undefined);
    await runStage(keeper, instance.husk, bootStep(program, file, task));
    const executed = monotonicNs();
    await loaded;
    return [
      { name: "execute", us: usBetween(began, executed) },
      { name: "load", us: usBetween(executed, monotonicNs()) },
    ];
  } finally {
    keeper.closeFile(file);
    if (task !== undefined) keeper.closeFile(task);
  }
}

/** `details`: `error`, as the runtime reported it; else `code` and `type`, ours and Lambda's names for what happened. Always `logs`. */
function initFailed(instance: LiveInstance, why: string, details: Record<string, unknown>, cause?: unknown): ThawError {
  return new ThawError("INIT_FAILED", {
    what: `function "${instance.spec.name}" failed while it was loaded`,
    why,
    details: { ...details, logs: instance.takeLogs().toString("utf8") },
    ...(cause === undefined ? {} : { cause }),
  });
}

/** Of what a function died of at its load, in the error's sentence, which is kept with the function and listed; the reply has the whole. */
const WHY_CHARACTERS_MAX = 2000;

/** An error as runtimes tell it: texts and lists of texts. */
type LoadError = Readonly<Record<string, string | readonly string[]>>;

const isText = (value: unknown): value is string => typeof value === "string";

/** What the runtime says, unless it was the function that wrote it: then its members may be anything, and what is no text is left out. */
function loadError(body: Buffer): LoadError {
  let error: unknown;
  try {
    error = JSON.parse(body.toString("utf8"));
  } catch {
    // As it is said below.
  }
  if (typeof error === "object" && error !== null) {
    const members = Object.entries(error as LoadError);
    return Object.fromEntries(members.filter(([, value]) => isText(value) || (Array.isArray(value) && value.every(isText))));
  }
  throw notTheReply("an error of its load came that is no object of JSON");
}

/** Resolves when the function is loaded. INIT_FAILED, also when `signal` ends it. */
export async function ready(instance: LiveInstance, signal?: AbortSignal): Promise<void> {
  const { graceMs } = instance.owner;
  const unfinished = (why: string, fix?: string, details = {}): void => {
    const what = `function "${instance.spec.name}" did not finish loading`;
    const logs = instance.takeLogs().toString("utf8");
    instance.fail(new ThawError("INIT_FAILED", { what, why, ...(fix && { fix }), details: { ...details, logs } }));
  };
  const timer = setTimeout(() => {
    const details = { code: "TIMEOUT", type: PLATFORM_ERRORS.TIMEOUT[1] };
    unfinished(`it took longer than ${graceMs / 1000} s`, "do less at load", details);
  }, graceMs);
  const giveUp = (): void => unfinished("nobody wants it any more");
  signal?.addEventListener("abort", giveUp);
  try {
    if (signal?.aborted === true) giveUp();
    const { header, body } = await instance.expect("ready");
    if (header.type !== "initError") return;
    const error = loadError(body);
    const why = `${error.errorType ?? "Error"}: ${error.errorMessage ?? ""}`;
    throw initFailed(instance, why.length <= WHY_CHARACTERS_MAX ? why : `${why.slice(0, WHY_CHARACTERS_MAX)}…`, { error });
  } catch (error) {
    if (
      isThawError(error, "INSTANCE_EXITED") ||
      isThawError(error, "OUT_OF_MEMORY") ||
      isThawError(error, "PROTOCOL_VIOLATION") ||
      isThawError(error, "RESPONSE_TOO_LARGE")
    ) {
      throw initFailed(instance, error.message, { code: error.code, type: PLATFORM_ERRORS[error.code]?.[1] }, error);
    }
    throw error;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", giveUp);
  }
}
