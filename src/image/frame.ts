/**
 * The signal frame through which a thread returns to the point where it was stopped: `struct rt_sigframe` of x86-64
 * with its extended state (uapi/asm/sigcontext.h, ucontext.h). rt_sigreturn sets registers, signal mask, alternate stack and extended
 * state in one system call.
 */
import { assert } from "../base/errors.js";
import type { Facts, ThreadFacts } from "./facts.js";

const FP_XSTATE_MAGIC1 = 0x46505853;
const FP_XSTATE_MAGIC2 = 0x46505845;
const SW_RESERVED_AT = 464;
const XSTATE_BV_AT = 512;
/** UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS */
const UC_FLAGS = 7n;
const FRAME_BYTES = 440;
const UC_AT = 8;
const STACK_AT = UC_AT + 16;
const CONTEXT_AT = UC_AT + 40;
const SIGMASK_AT = CONTEXT_AT + 256;

/** Order of struct user_regs_struct. */
const USER_REGS = [
  "r15",
  "r14",
  "r13",
  "r12",
  "rbp",
  "rbx",
  "r11",
  "r10",
  "r9",
  "r8",
  "rax",
  "rcx",
  "rdx",
  "rsi",
  "rdi",
  "origRax",
  "rip",
  "cs",
  "eflags",
  "rsp",
  "ss",
  "fsBase",
  "gsBase",
  "ds",
  "es",
  "fs",
  "gs",
] as const;
/** Order of struct sigcontext_64, up to the flags. */
const CONTEXT_REGS = [
  "r8",
  "r9",
  "r10",
  "r11",
  "r12",
  "r13",
  "r14",
  "r15",
  "rdi",
  "rsi",
  "rbp",
  "rbx",
  "rdx",
  "rax",
  "rcx",
  "rsp",
  "rip",
  "eflags",
] as const;

/** One register of a stopped thread. */
export function register(thread: ThreadFacts, name: (typeof USER_REGS)[number]): bigint {
  return thread.regs.readBigUInt64LE(USER_REGS.indexOf(name) * 8);
}

/** The extended state as the kernel wants it in a frame: software bytes, and the second magic behind it. Place it at a multiple of 64. */
export function extendedState(thread: ThreadFacts, frame: Facts["frame"]): Buffer {
  assert(thread.xstate.length >= frame.stateBytes, "extended state is shorter than the kernel's frame");
  const state = Buffer.alloc(frame.extendedBytes);
  thread.xstate.copy(state, 0, 0, frame.stateBytes);
  state.fill(0, SW_RESERVED_AT, XSTATE_BV_AT);
  state.writeUInt32LE(FP_XSTATE_MAGIC1, SW_RESERVED_AT);
  state.writeUInt32LE(frame.extendedBytes, SW_RESERVED_AT + 4);
  state.writeBigUInt64LE(frame.features, SW_RESERVED_AT + 8);
  state.writeUInt32LE(frame.stateBytes, SW_RESERVED_AT + 16);
  // Components that do not fit into a frame (AMX tiles before they are permitted) are in their initial state.
  state.writeBigUInt64LE(state.readBigUInt64LE(XSTATE_BV_AT) & frame.features, XSTATE_BV_AT);
  state.writeUInt32LE(FP_XSTATE_MAGIC2, frame.stateBytes);
  return state;
}

/** The frame itself, for extended state that stands at `stateAt`. */
export function signalFrame(thread: ThreadFacts, stateAt: bigint): Buffer {
  const frame = Buffer.alloc(FRAME_BYTES);
  frame.writeBigUInt64LE(UC_FLAGS, UC_AT);
  const [stackAt, stackFlags, stackBytes] = thread.altstack;
  frame.writeBigUInt64LE(stackAt, STACK_AT);
  frame.writeBigUInt64LE(stackFlags & 0xffffffffn, STACK_AT + 8);
  frame.writeBigUInt64LE(stackBytes, STACK_AT + 16);
  for (const [index, name] of CONTEXT_REGS.entries()) frame.writeBigUInt64LE(register(thread, name), CONTEXT_AT + index * 8);
  frame.writeUInt16LE(Number(register(thread, "cs")), CONTEXT_AT + 144);
  frame.writeUInt16LE(Number(register(thread, "ss")), CONTEXT_AT + 150);
  frame.writeBigUInt64LE(stateAt, CONTEXT_AT + 184);
  frame.writeBigUInt64LE(thread.sigmask, SIGMASK_AT);
  return frame;
}
