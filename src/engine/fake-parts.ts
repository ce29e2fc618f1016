/** What tests tell the fake engine (fake.ts), and what it tells of images. */
import type { FunctionSpec, Image, ImageInspection, InstanceState, InvokeResult } from "./types.js";

/** Operations that can be told to fail. `start`: that of an early thaw, told by its first `invoke`. */
export type FakeOperation =
  | "boot"
  | "freeze"
  | "thaw"
  | "start"
  | "openImage"
  | "prepareImage"
  | "removeImage"
  | "invoke"
  | "pages"
  | "hibernate"
  | "wake";

/** What a fake handler gets beside the event. */
export interface FakeContext {
  readonly spec: FunctionSpec;
  readonly requestId: string;
  readonly instanceId: number;
  /** Requests that this instance answered before. */
  readonly served: number;
  /** Adds to the request's log. */
  log(text: string): void;
}

/** Answers an event. What it throws becomes a function error; a {@link FakeEnd} ends the instance. */
export type FakeHandler = (event: unknown, context: FakeContext) => unknown;

/** Thrown by a fake handler: the platform ends the instance for that reason. */
export class FakeEnd extends Error {
  constructor(readonly platformError: NonNullable<InvokeResult["platformError"]>) {
    super(platformError);
  }
}

export interface FakeEngineOptions {
  /** Where images go when `freeze` gets no directory. */
  readonly dir?: string;
  readonly canFreeze?: boolean;
  readonly runtimes?: readonly string[];
  /** Default: answers `{"event": …, "function": name}`. */
  readonly handler?: FakeHandler;
}

/** A failure that was asked for, and how often. */
export interface FakeFailure {
  readonly error: Error;
  times: number;
}

/** Of an image that has no parts. */
export function fakeInspection(image: Image): ImageInspection {
  const none = { lineagePids: [], threads: [], mappings: {}, mappedFiles: [], descriptors: [], bytes: {} };
  return {
    ...none,
    formatVersion: 3,
    createdMs: 0,
    generation: image.generation,
    heat: image.heat,
    ...(image.code === undefined ? {} : { code: image.code }),
    kernel: "fake",
    cpu: "fake",
    tmpFiles: 0,
    pages: { stored: image.bytesOnDisk / 4096 },
    workingSetDamaged: false,
  };
}

/** What instances take by state, unless a test says otherwise. */
export const RESIDENT_BYTES: Record<Exclude<InstanceState, "deflating">, number> = {
  warm: 1_228_800,
  woken: 614_400,
  hibernated: 61_440,
};
