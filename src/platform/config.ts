/** What a function may be configured to: checked at the door, with the limit and its value in every refusal. */
import { isDeepStrictEqual } from "node:util";
import { ThawError } from "../base/errors.js";
import { variables, z } from "../base/schema.js";
import { MIB } from "../base/units.js";
import { RESERVED_ENVIRONMENT } from "../runtime/launch.js";
import { type DeployRequest, LIMITS } from "./types.js";

const whole = (what: string, min: number, max: number, unit: string) =>
  z.number(`${what} is not a number`).refine((value) => Number.isInteger(value) && value >= min && value <= max, {
    error: ({ input }) => `${what} is ${String(input)}, and it must be a whole number from ${min} to ${max}${unit}`,
  });

/** In milliseconds, and told in seconds: so options, thaw.json and queries have it. */
const timeout = z
  .number("the timeout is not a number")
  .refine((ms) => Number.isInteger(ms) && ms >= LIMITS.timeoutMsMin && ms <= LIMITS.timeoutMsMax, {
    error: ({ input }) =>
      `the timeout is ${Number(input) / 1000} s, and it must be from ${LIMITS.timeoutMsMin / 1000} to ${LIMITS.timeoutMsMax / 1000} s, in whole milliseconds`,
  });

const functionName = z
  .string("the name is not text")
  .regex(/^[a-zA-Z0-9_-]{1,64}$/, "a name has 1 to 64 letters, digits, hyphens and underscores");

const environment = variables("a value is not text").superRefine((env, context) => {
  let bytes = 0;
  for (const [key, value] of Object.entries(env)) {
    if (RESERVED_ENVIRONMENT.includes(key)) context.addIssue(`the environment variable ${key} is set by the platform`);
    else if (!/^[a-zA-Z][a-zA-Z0-9_]*$/.test(key)) {
      context.addIssue(
        `the environment variable "${key}" must begin with a letter and have only letters, digits and underscores`,
      );
    } else if (value.includes("\0")) context.addIssue(`the environment variable ${key} contains a NUL byte`);
    bytes += Buffer.byteLength(key) + Buffer.byteLength(value);
  }
  if (bytes > LIMITS.environmentBytes) {
    context.addIssue(`the environment has ${bytes} bytes, and the limit is ${LIMITS.environmentBytes}`);
  }
});

const EVENTS_MAX = 1_000;
const EVENTS_BYTES_MAX = MIB;

const warmUp = z.strictObject(
  {
    events: z
      .array(z.unknown(), "the warm-up events are not a list")
      .min(1, "warm-up has no events, and it takes at least one")
      .max(EVENTS_MAX, `warm-up has more than ${EVENTS_MAX} events`)
      .superRefine((events, context) => {
        let bytes = 0;
        for (const [index, event] of events.entries()) {
          const text = jsonOf(event);
          if (text === undefined) context.addIssue(`warm-up event ${index + 1} is not a JSON value`);
          else bytes += Buffer.byteLength(text);
        }
        if (bytes > EVENTS_BYTES_MAX)
          context.addIssue(`the warm-up events have ${bytes} bytes, and the limit is ${EVENTS_BYTES_MAX}`);
      }),
    requests: whole("the number of warm-up requests", 1, LIMITS.heatRequestsMax, "").default(1_000),
  },
  {
    error: ({ code }) =>
      code === "unrecognized_keys" ? "warm-up has events and requests, and nothing else" : "warm-up is not an object with events",
  },
);

/** Its text, unless something of it would be lost on the way. */
function jsonOf(value: unknown): string | undefined {
  try {
    const text = JSON.stringify(value) as string | undefined;
    return text !== undefined && isDeepStrictEqual(JSON.parse(text), value) ? text : undefined;
  } catch {
    return undefined;
  }
}

const deployConfig = z.object({
  name: functionName,
  runtime: z.string("the runtime is not text").optional(),
  handler: z
    .string("the handler is not text")
    .regex(/^[^\s\0]{1,128}$/, "a handler has 1 to 128 characters without spaces, such as index.handler")
    .refine((handler) => !handler.includes("..") && !handler.startsWith("/"), "a handler names a file inside the package")
    .refine((handler) => handler.lastIndexOf(".") > 0, "a handler has the form FILE.EXPORT, such as index.handler")
    .optional(),
  memoryMb: whole("the memory", LIMITS.memoryMbMin, LIMITS.memoryMbMax, " MB").default(128),
  timeoutMs: timeout.default(3_000),
  env: environment.default({}),
  tmpMb: whole("the size of /tmp", LIMITS.tmpMbMin, LIMITS.tmpMbMax, " MB").default(512),
  description: z.string("the description is not text").max(256, "a description has at most 256 characters").default(""),
  maxInstances: whole("the limit on instances", 1, 10_000, "").optional(),
  provisioned: whole("the number of provisioned husks", 0, 1_000, "").optional(),
  warmUp: warmUp.optional(),
  learn: z.boolean("whether to learn from traffic is not true or false").optional(),
});

/** A checked configuration, defaults filled in. */
export type DeployConfig = z.output<typeof deployConfig>;

/** Checks a request. INVALID_ARGUMENT with every objection. */
export function checkConfig(request: Omit<DeployRequest, "zip">): DeployConfig {
  const given = Object.fromEntries(Object.entries(request).filter(([, value]) => value !== undefined));
  const parsed = deployConfig.safeParse(given);
  if (parsed.success) return parsed.data;
  throw new ThawError("INVALID_ARGUMENT", {
    what: `Function "${String(request.name).slice(0, 80)}" cannot be deployed`,
    why: [...new Set(parsed.error.issues.map((issue) => issue.message))].join("; "),
    fix: "Correct the value and deploy again",
    details: { fields: parsed.error.issues.map((issue) => issue.path.join(".")) },
  });
}
