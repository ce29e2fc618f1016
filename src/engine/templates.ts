/** Root file systems by runtime, each made once and copied for every sandbox (src/linux/rootfs.ts says what is in them). */
import { ThawError } from "../base/errors.js";
import { hiddenBelow, type Interpreter } from "../linux/interpreters.js";
import { planRoot } from "../linux/rootfs.js";
import type { Keeper } from "./keeper.js";
import type { NativePaths } from "./native.js";

/** Where the preload shim lies inside. */
const SHIM_INSIDE = "/run/thaw/shim.so";

/** One runtime's root; `id` is the keeper's. */
export interface Template {
  readonly id: number;
  readonly interpreter: Interpreter;
}

/** How the interpreter of a template is called, for {@link launch}. */
export function interpreterOf({ interpreter }: Template): { interpreter: string; preload?: string } {
  return { interpreter: interpreter.path, ...(interpreter.language === "node" ? { preload: SHIM_INSIDE } : {}) };
}

/** The root file systems of all runtimes, each made once, when it is first used. */
export class Templates {
  readonly #made = new Map<string, Template>();
  readonly #making = new Map<string, Promise<Template>>();

  /** @param onMade called once for each, before anybody gets it */
  constructor(
    private readonly keeper: Keeper,
    private readonly paths: NativePaths,
    private readonly interpreters: readonly Interpreter[],
    private readonly onMade: (template: Template) => void,
  ) {}

  /** Those that exist. */
  all(): readonly Template[] {
    return [...this.#made.values()];
  }

  /** The one of that runtime, if it was made. */
  made(runtime: string): Template | undefined {
    return this.#made.get(runtime);
  }

  /** The one of that runtime. RUNTIME_MISSING, SANDBOX_FAILED. */
  get(runtime: string): Promise<Template> {
    const made = this.#made.get(runtime);
    if (made !== undefined) return Promise.resolve(made);
    let making = this.#making.get(runtime);
    if (making === undefined) {
      making = this.#make(runtime).finally(() => this.#making.delete(runtime));
      this.#making.set(runtime, making);
    }
    return making;
  }

  async #make(runtime: string): Promise<Template> {
    const interpreter = this.interpreters.find((one) => one.id === runtime);
    if (interpreter === undefined) {
      throw new ThawError("RUNTIME_MISSING", {
        what: `runtime ${runtime} is not on this machine`,
        why: `found: ${this.interpreters.map((one) => one.id).join(", ") || "none"}`,
        fix: "install its interpreter, or choose another runtime",
      });
    }
    const hidden = hiddenBelow(interpreter.path);
    if (hidden !== undefined) {
      throw new ThawError("RUNTIME_MISSING", {
        what: `runtime ${runtime} cannot be used`,
        why: `${interpreter.path} lies in ${hidden}, and functions have a ${hidden} of their own`,
        fix: "install the interpreter elsewhere, below /usr/local or /opt for example",
      });
    }
    const plan = planRoot(interpreter, { huskPath: this.paths.husk, runtimeDir: this.paths.runtimeDir });
    const id = await this.keeper.template([...plan, { kind: "bind", source: this.paths.shim, target: SHIM_INSIDE }]);
    const template = { id, interpreter };
    this.#made.set(runtime, template);
    this.onMade(template);
    return template;
  }
}
