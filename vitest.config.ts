import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";

/**
 * Three projects. `unit` stands beside the code (and the tests of documents and architecture): pure, many files in one process, because to load the
 * modules anew for each took longer than most of its tests. `mocked` are those that put something else in a module's place, which needs a process for each file. `kernel` stands in test/: real processes, mounts and cgroups, each file with a process, an engine, a data
 * directory and cgroups of its own; a test that looks at the whole machine looks only at what is its own. The run fails when anything of ours
 * outlives it (test/setup/leftovers.ts).
 */

/** Files at a time. Of a test's time a sixth is waiting; but three of the kernel's on two processors make each of them a third slower, and those that race with the machine lose. */
const UNIT_WORKERS = availableParallelism() + 1;
const KERNEL_WORKERS = 2;

export default defineConfig({
  test: {
    expect: { poll: { timeout: 30_000 } },
    pool: "forks",
    globalSetup: ["test/setup/path.ts", "test/setup/scratch.ts"],
    passWithNoTests: false,
    teardownTimeout: 45_000,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    projects: [
      {
        extends: true,
        test: {
          name: "unit",
          exclude: ["src/**/*.mocked.test.ts"],
          include: [
            "src/**/*.test.ts",
            "test/architecture.test.ts",
            "test/docs.test.ts",
            "test/build.test.ts",
            "test/setup/*.test.ts",
          ],
          isolate: false,
          maxWorkers: UNIT_WORKERS,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          name: "mocked",
          include: ["src/**/*.mocked.test.ts"],
          maxWorkers: UNIT_WORKERS,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          name: "kernel",
          include: ["test/**/*.test.ts"],
          exclude: ["test/architecture.test.ts", "test/docs.test.ts", "test/build.test.ts", "test/setup/**"],
          globalSetup: ["test/setup/leftovers.ts"],
          maxWorkers: KERNEL_WORKERS,
          testTimeout: 120_000,
          hookTimeout: 120_000,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
