/** Entry point of `thaw`: the real streams, signals and parts. */
import { once } from "node:events";
import { readUpTo } from "./io.js";
import { run } from "./program.js";

const stop = new AbortController();

// The first signal asks for an orderly end; a second one, of whatever kind, does not wait for it.
for (const [signal, number] of [
  ["SIGINT", 2],
  ["SIGTERM", 15],
  ["SIGHUP", 1],
] as const) {
  process.on(signal, () => {
    if (stop.signal.aborted) process.exit(128 + number);
    stop.abort();
  });
}

// `thaw logs --follow | head` closes our output: a reason to end, not an error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  process.stderr.write(`error: The output cannot be written\n  why: ${error.message}\n`);
  process.exit(1);
});

// Nobody is left who could be told. `thaw serve 2>&1 | tee log` goes on, and ends in order, without its tee.
process.stderr.on("error", () => undefined);

process.exitCode = await run(process.argv.slice(2), {
  io: {
    async out(text) {
      if (!process.stdout.write(text)) await once(process.stdout, "drain");
    },
    err: (text) => void process.stderr.write(text),
    readInput: (bytesMax) => readUpTo(process.stdin, bytesMax, stop.signal),
    env: process.env,
    cwd: process.cwd(),
    stop: stop.signal,
    interactive: process.stderr.isTTY === true,
  },
  parts: {
    probeMachine: async (dataDir) => (await import("../linux/doctor.js")).probeMachine({ dataDir }),
    openEngine: async (options) => (await import("../engine/index.js")).openEngine(options),
  },
});
