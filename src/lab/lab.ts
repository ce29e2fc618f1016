/** What a section of the benchmark gets, and what it is. */
import type { Cleanup, Deadline } from "./bounded.js";
import type { SectionReport } from "./report.js";

/** What a section is given. */
export interface Lab {
  /** Samples of each way of starting. */
  readonly rounds: number;
  /** Names of the functions to measure, where a section measures several; all when undefined. */
  readonly only?: readonly string[];
  /** Ends the section. */
  readonly deadline: Deadline;
  /** What must be undone however the run ends. */
  readonly cleanup: Cleanup;
  /** Says what is going on; a short line without newline. */
  progress(text: string): void;
  /** A new empty directory, removed at the end. */
  makeDir(name: string): string;
}

/** One part of the benchmark, by its name on the command line. */
export interface Section {
  readonly name: string;
  /** One line for `--help`. */
  readonly about: string;
  readonly msMax: number;
  run(lab: Lab): Promise<SectionReport>;
}
