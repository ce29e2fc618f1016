import { defineConfig } from "vitest/config";

/**
 * Two projects. `unit` stands beside the code (and the tests of documents and architecture): pure, parallel.
 * `kernel` stands in test/: real processes, mounts and cgroups, so one file at a time, and the run fails when
 * anything of ours outlives it (test/setup/leftovers.ts).
 */
export default defineConfig({
  test: {
    expect: { poll: { timeout: 30_000 } },
    pool: "forks",
    passWithNoTests: false,
    teardownTimeout: 45_000,
    projects: [
      {
        extends: true,
        test: {
          name: "unit",
          include: ["src/**/*.test.ts", "test/architecture.test.ts", "test/docs.test.ts", "test/setup/*.test.ts"],
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
          exclude: ["test/architecture.test.ts", "test/docs.test.ts", "test/setup/**"],
          globalSetup: ["test/setup/leftovers.ts"],
          fileParallelism: false,
          testTimeout: 120_000,
          hookTimeout: 120_000,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
