/** What the runtime is told of a request beside its payload. */
import type { InvokeHeader, ThawHeader } from "../runtime/frames.js";
import type { FunctionSpec, InvokeOptions } from "./types.js";

/** What an instance adds to it: see {@link InvokeHeader}. */
export interface InstanceTold {
  readonly requestId: string;
  readonly deadlineMs: number;
  readonly thaw: ThawHeader | undefined;
  readonly resumed: boolean;
}

/** Members in the order that the runtimes rehearse. */
export function invokeHeader(spec: FunctionSpec, options: InvokeOptions, told: InstanceTold): InvokeHeader {
  const { clientContext, traceId, rehearsal = false } = options;
  return {
    type: "invoke",
    requestId: told.requestId,
    deadlineMs: told.deadlineMs,
    functionName: spec.name,
    functionVersion: spec.version,
    memoryMb: spec.memoryMb,
    invokedArn: options.invokedArn ?? `arn:aws:lambda:us-east-1:000000000000:function:${spec.name}`,
    ...(clientContext === undefined ? {} : { clientContext }),
    ...(traceId === undefined ? {} : { traceId }),
    ...(told.thaw === undefined ? {} : { thaw: told.thaw }),
    ...(told.resumed ? { resumed: true } : {}),
    ...(rehearsal ? { rehearsal } : {}),
  };
}
