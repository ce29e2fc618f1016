import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";

/**
 * Two projects. `unit` stands beside the code (and the tests of documents and architecture): pure, on all processors.
 * `kernel` stands in test/: real processes, mounts and cgroups. Two files at a time, each with an engine, a data directory and cgroups of its own; a
 * test that looks at the whole machine looks only at what is its own. The run fails when anything of ours outlives it (test/setup/leftovers.ts).
 */
export default defineConfig({
  test: {
    expect: { poll: { timeout: 30_000 } },
    pool: "forks",
    globalSetup: ["test/setup/path.ts", "test/setup/scratch.ts"],
    passWithNoTests: false,
    teardownTimeout: 45_000,
    projects: [
      {
        extends: true,
        test: {
          name: "unit",
          include: [
            "src/**/*.test.ts",
            "test/architecture.test.ts",
            "test/docs.test.ts",
            "test/build.test.ts",
            "test/setup/*.test.ts",
          ],
          maxWorkers: Math.max(2, availableParallelism()),
          testTimeout: 60_000,
          hookTimeout: 60_000,
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
          maxWorkers: 2,
          testTimeout: 120_000,
          hookTimeout: 120_000,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
