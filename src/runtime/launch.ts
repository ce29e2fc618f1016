/**
 * How a runtime is started: the argument vector and the environment of the interpreter, as the sandbox sees them. Every flag
 * has its reason beside it. Tried and left out: `--no-flush-bytecode` (no faster first request, 2 % more memory; it is on while a freeze
 * collects, see node/collector.cjs), a smaller young generation, eager compilation, early profiling, Sparkplug at once, Maglev (the table in
 * docs/design/runtime.md), `-u` for Python.
 */
import { ThawError } from "../base/errors.js";

/** Where the runtime's files and the function's code lie inside the sandbox. */
const RUNTIME_DIR = "/var/runtime";
const TASK_ROOT = "/var/task";

/** Names that Lambda sets itself, and two that freezing depends on. */
export const RESERVED_ENVIRONMENT: readonly string[] = [
  "_HANDLER",
  "_X_AMZN_TRACE_ID",
  "AWS_REGION",
  "AWS_DEFAULT_REGION",
  "AWS_EXECUTION_ENV",
  "AWS_LAMBDA_FUNCTION_NAME",
  "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
  "AWS_LAMBDA_FUNCTION_VERSION",
  "AWS_LAMBDA_INITIALIZATION_TYPE",
  "AWS_LAMBDA_LOG_GROUP_NAME",
  "AWS_LAMBDA_LOG_STREAM_NAME",
  "AWS_LAMBDA_RUNTIME_API",
  "LAMBDA_TASK_ROOT",
  "LAMBDA_RUNTIME_DIR",
  "UV_USE_IO_URING",
  "THAW_BASE",
];

/** What must be known of a function to start it. */
export interface LaunchInput {
  /** `nodejs20.x`, `python3.11`, … */
  readonly runtime: string;
  /** Absolute path of the interpreter inside the sandbox. */
  readonly interpreter: string;
  readonly name: string;
  readonly version: string;
  readonly handler: string;
  readonly memoryMb: number;
  /** The user's environment. */
  readonly env: Readonly<Record<string, string>>;
  /** Absolute path inside the sandbox of a library for LD_PRELOAD. The user's own, if any, come after it. */
  readonly preload?: string;
  /** The bare runtime, without a function: it parks until it is frozen (docs/design/base-images.md). */
  readonly base?: boolean;
}

/** What to execute, and where. `env` is the whole environment. */
export interface Launch {
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
}

/** The reserved names that `env` tries to set. */
function reservedNames(env: Readonly<Record<string, string>>): string[] {
  return Object.keys(env).filter((name) => RESERVED_ENVIRONMENT.includes(name));
}

/**
 * V8's limit on old objects, MiB. 85 % less 24 MiB leaves room for the young generation, buffers and V8's own code and
 * threads, so that V8 collects in time rather than grows into the cgroup's limit: without the flag it plans for the
 * machine's memory, and lets a heap of 40 MB reach four times that before it collects.
 */
export function nodeHeapMb(memoryMb: number): number {
  return Math.max(48, Math.floor(memoryMb * 0.85) - 24);
}

/** Fails with INVALID_ARGUMENT for an unknown runtime, a reserved or impossible name in `env`. */
export function launch(input: LaunchInput): Launch {
  checkEnvironment(input);
  if (/^nodejs\d+\.x$/.test(input.runtime)) return launchNode(input);
  if (/^python3\.\d+$/.test(input.runtime)) return launchPython(input);
  throw new ThawError("INVALID_ARGUMENT", {
    what: `Runtime "${input.runtime}" is unknown`,
    why: "runtimes are called nodejs20.x or python3.11, with the version that the machine has",
    fix: "Ask `thaw doctor` which runtimes this machine has",
  });
}

function launchNode(input: LaunchInput): Launch {
  const flags = [
    // A thaw makes the monotonic clock jump, and V8's memory reducer takes that for idleness: three collections during the first requests.
    "--no-memory-reducer",
    // One worker thread instead of four: three threads and ten mappings fewer to bring back; collections were not slower on two cores.
    "--v8-pool-size=1",
    // Worker threads inherit it; the main one does next to nothing there.
    `--require=${RUNTIME_DIR}/node/worker.cjs`,
  ];
  // The user's own choice in NODE_OPTIONS would lose against the command line.
  const chosen = (flag: RegExp): boolean => flag.test(input.env.NODE_OPTIONS ?? "");
  if (!chosen(/--max[-_]semi[-_]space[-_]size/)) {
    // Half-spaces of 4 MB instead of 16: what lies in them after a collection is garbage, but an image would store it and every clone
    // carry it (200,000 objects: 72 MB anonymous → 47). Loading such a heap was not slower.
    flags.push("--max-semi-space-size=4");
  }
  if (!chosen(/--max[-_]old[-_]space[-_]size/)) flags.push(`--max-old-space-size=${nodeHeapMb(input.memoryMb)}`);
  return {
    argv: [input.interpreter, ...flags, `${RUNTIME_DIR}/node/bootstrap.cjs`],
    // What layers bring, and the function's own folders by their names from its root; CommonJS only, as in Lambda. The second makes
    // `require("thaw-snapshot")` work wherever the caller lies.
    env: environment(input, { NODE_PATH: `/opt/nodejs/node_modules:${RUNTIME_DIR}/node/packages:${TASK_ROOT}` }),
    cwd: TASK_ROOT,
  };
}

function launchPython(input: LaunchInput): Launch {
  return {
    // -s: no module directory of a user. Output is line-buffered by the bootstrap, so -u with its two writes a line is not needed.
    argv: [input.interpreter, "-s", `${RUNTIME_DIR}/python/bootstrap.py`],
    // /var/task cannot be written: trying to costs system calls for each module.
    env: environment(input, { PYTHONDONTWRITEBYTECODE: "1" }),
    cwd: TASK_ROOT,
  };
}

function environment(input: LaunchInput, defaults: Record<string, string>): Record<string, string> {
  const preload = [input.preload, input.env.LD_PRELOAD].filter((path) => path !== undefined && path !== "").join(":");
  return {
    PATH: "/usr/local/bin:/usr/bin:/bin:/opt/bin",
    // Without it Python takes file names and output for ASCII.
    LANG: "C.UTF-8",
    HOME: "/tmp",
    TZ: ":UTC",
    // One malloc arena: each further one is two mappings, for each thread, at every thaw (Node after using its thread pool: 110 → 100).
    MALLOC_ARENA_MAX: "1",
    ...defaults,
    ...input.env,
    // An io_uring cannot be frozen.
    UV_USE_IO_URING: "0",
    _HANDLER: input.handler,
    // SDKs need to be told some region.
    AWS_REGION: "us-east-1",
    AWS_DEFAULT_REGION: "us-east-1",
    AWS_EXECUTION_ENV: `AWS_Lambda_${input.runtime}`,
    AWS_LAMBDA_FUNCTION_NAME: input.name,
    AWS_LAMBDA_FUNCTION_MEMORY_SIZE: String(input.memoryMb),
    AWS_LAMBDA_FUNCTION_VERSION: input.version,
    AWS_LAMBDA_INITIALIZATION_TYPE: "snap-start",
    AWS_LAMBDA_LOG_GROUP_NAME: `/aws/lambda/${input.name}`,
    // Equal in all clones of an image: an environment is frozen with its process.
    AWS_LAMBDA_LOG_STREAM_NAME: `[${input.version}]`,
    LAMBDA_TASK_ROOT: TASK_ROOT,
    LAMBDA_RUNTIME_DIR: RUNTIME_DIR,
    ...(preload === "" ? {} : { LD_PRELOAD: preload }),
    ...(input.base === true ? { THAW_BASE: "1" } : {}),
  };
}

function checkEnvironment(input: LaunchInput): void {
  const reserved = reservedNames(input.env);
  if (reserved.length > 0) {
    throw new ThawError("INVALID_ARGUMENT", {
      what: `The environment of function "${input.name}" sets ${reserved.join(", ")}`,
      why: "these names are reserved: the platform sets them",
      fix: "Use other names",
      details: { reserved },
    });
  }
  for (const [name, value] of Object.entries(input.env)) {
    if (/^[A-Za-z_][A-Za-z0-9_]*$/.test(name) && !value.includes("\0")) continue;
    throw new ThawError("INVALID_ARGUMENT", {
      what: `The environment variable ${JSON.stringify(name)} of function "${input.name}" cannot be set`,
      why: "a name consists of letters, digits and underscores and does not begin with a digit; a value has no NUL",
      fix: "Rename it, or encode the value",
    });
  }
}
