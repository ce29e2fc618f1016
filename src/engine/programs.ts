/** The programs of one image: each compiled, and handed to the keeper, when it is first asked for. */
import { nextTurn } from "../base/turns.js";
import type { Program } from "../image/index.js";
import type { Keeper } from "./keeper.js";
import type { PassedFd, StageRequest } from "./keeper-messages.js";
import type { StageStep } from "./stages.js";

/** A program that the keeper has. */
export interface Compiled {
  readonly program: Program;
  readonly file: number;
  /** How a husk is told to run it: always the same, so encoded once. */
  request?: StageRequest;
}

/** See above. Their names tell them apart. */
export class Programs {
  readonly #programs = new Map<string, Compiled & { readonly compile: () => Program }>();
  #closed = false;

  constructor(
    private readonly keeper: Keeper,
    private readonly fdBase: number,
  ) {}

  get(name: string, compile: () => Program): Compiled {
    let compiled = this.#programs.get(name);
    if (compiled === undefined) {
      const program = compile();
      compiled = { program, file: this.keeper.fileBytes(program.bytes), compile };
      this.#programs.set(name, compiled);
    }
    return compiled;
  }

  has(name: string): boolean {
    return this.#programs.has(name);
  }

  /** Those that are outdated are dropped, and compiled anew in turns of their own, so that seldom a request has to wait for that. */
  async renew(isOutdated: (name: string) => boolean): Promise<void> {
    const outdated = [...this.#programs].filter(([name]) => isOutdated(name));
    for (const [name, { file }] of outdated) {
      this.keeper.closeFile(file);
      this.#programs.delete(name);
    }
    for (const [name, { compile }] of outdated) {
      await nextTurn();
      if (this.#closed) return;
      this.get(name, compile);
    }
  }

  /** Asks for the program when the stage runs: a working set that is recorded meanwhile replaces programs. `always`: with these descriptors. */
  step(name: string, program: () => Compiled, fds: readonly PassedFd[] = [], always = true): StageStep {
    return {
      name,
      labels: () => program().program.labels,
      request: () => {
        const compiled = program();
        if (!always) return { program: compiled.file, fds, fdBase: this.fdBase };
        compiled.request ??= { program: compiled.file, fds, fdBase: this.fdBase };
        return compiled.request;
      },
    };
  }

  close(): void {
    this.#closed = true;
    for (const { file } of this.#programs.values()) this.keeper.closeFile(file);
    this.#programs.clear();
  }
}
