/**
 * What is run in a process on its behalf, its filter suspended: whoever can write into its memory meanwhile, and a child process can,
 * runs nothing of his own there.
 */
import { afterEach, describe, expect, it } from "vitest";
import type { Instance } from "../src/engine/index.js";
import { ABI_CONSTANTS } from "../src/linux/abi.js";
import { ask, useBench } from "./support/bench.js";
import { withInstance } from "./support/world.js";

const WORKSHOP_AT = Number(ABI_CONSTANTS.HUSK_WORKSHOP_AT);
const SCRIPT_AT = WORKSHOP_AT + 4096;

/** Each child writes, for as long as it lives, code into its parent that asks for a user namespace (unshare, CLONE_NEWUSER). */
const WRITERS = `
import ctypes, errno, mmap, os, signal, socket, struct, threading, time
ASK = b"\\xb8" + struct.pack("<I", 272) + b"\\xbf" + struct.pack("<I", 0x10000000) + b"\\x0f\\x05"
kept, seen, count = [], set(), 0

def keep_writing(*writes, closing=None):
    parent, (told, tell) = os.getpid(), os.pipe()
    if os.fork():
        os.read(told, 1)
        return
    if closing: closing.close()
    fd = os.open("/proc/%d/mem" % parent, os.O_RDWR)
    end = time.monotonic() + 120
    os.write(tell, b"!")
    while time.monotonic() < end:
        for address, code in writes:
            try: os.pwrite(fd, code, address)
            except OSError: pass  # nothing is there now
    os._exit(0)

def script():
    """A jump to what was added behind, which does what it took the place of (mov (%rbx), %rax) and jumps back."""
    added = ASK + b"\\x48\\x8b\\x03"
    added += b"\\xeb" + struct.pack("<b", 3 - (43 + len(added) + 2))
    keep_writing((${SCRIPT_AT} + 43, added), (${SCRIPT_AT}, b"\\xeb\\x29"))

def call():
    signal.signal(signal.SIGTRAP, signal.SIG_IGN)  # a call is no single step then
    line = next(line for line in open("/proc/self/maps") if line.endswith("[vdso]\\n"))
    start, end = (int(address, 16) for address in line.split()[0].split("-"))
    code = ctypes.string_at(start, end - start)
    at = code.index(b"\\x0f\\x05")
    own = mmap.mmap(-1, 4096, prot=7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    own.write(ASK + b"\\xeb\\xfe")
    kept.append(own)
    jump = b"\\xe9" + struct.pack("<i", ctypes.addressof(ctypes.c_char.from_buffer(own)) - (start + at + 5))
    keep_writing((start + at, jump), (start + at, code[at:at + 5]))

def close():
    """Has the descriptors that a hibernation works with there be others: a socket whose close waits for an hour, one that brings a byte, and /dev/zero."""
    listening, slow = socket.socket(), socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    listening.bind(("127.0.0.1", 0))
    listening.listen(1)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200000)
    slow.connect(listening.getsockname())
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    slow.setblocking(False)
    for _ in range(10):
        try: slow.send(bytes(10000))
        except OSError: break
    tell, told = socket.socketpair()
    tell.send(b"bytes")
    zero = os.open("/dev/zero", os.O_RDWR)
    kept.extend([listening, listening.accept(), tell, told])
    # From PAIR_AT (native/replace.c) to the end of the message that brings the file.
    block = struct.pack("<iiQQQQiii", slow.fileno(), told.fileno(), ${WORKSHOP_AT} + 88, 1, 0, 20, 1, 1, zero)
    keep_writing((${WORKSHOP_AT} + 64, block), closing=slow)
    slow.detach()

def filter():
    """One of its own, which refuses what a script does most (madvise)."""
    def op(code, k, yes=0, no=0): return struct.pack("<HBBI", code, yes, no, k)
    rules = op(0x20, 0) + op(0x15, 28, 0, 1) + op(6, 0x50001) + op(6, 0x7fff0000)
    text = ctypes.create_string_buffer(rules)
    program = ctypes.create_string_buffer(struct.pack("<QQ", len(rules) // 8, ctypes.addressof(text)))
    assert ctypes.CDLL(None).syscall(317, 1, 0, program) == 0
    kept.append(bytearray(b"state" * 100000))

def trap():
    filter()
    signal.signal(signal.SIGTRAP, signal.SIG_IGN)

def look():
    """Its user namespace and its capabilities."""
    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
    return [os.readlink("/proc/self/ns/user"), status["CapEff"].strip()]

def threads():
    """Ask for a user namespace all the time, which the filter refuses; without it the kernel answers EINVAL to one of several threads."""
    libc = ctypes.CDLL(None, use_errno=True)
    def keep_asking():
        while True:
            libc.syscall(272, 0x10000000)
            seen.add(ctypes.get_errno())
    for _ in range(2): threading.Thread(target=keep_asking, daemon=True).start()
    while not seen: time.sleep(0.01)

def errors():
    return [errno.errorcode[number] for number in seen]

def state():
    global count
    count += 1
    return [count, len(kept), kept[0][:10].decode()]

def handler(event, context):
    return globals()[event["step"]]()
`;

const bench = useBench();
afterEach(() => bench.quiet());
const step = (instance: Instance, name: string): Promise<unknown> => ask(instance, { step: name });

describe("what is run on a function's behalf while it is hibernated", () => {
  it.each([
    ["script", 5],
    ["call", 20],
  ])("gives it nothing, whatever a child writes there (%s)", { timeout: 180_000 }, async (way, rounds) => {
    await withInstance(bench.engine.boot(bench.python(WRITERS)), async (one) => {
      const before = await step(one, "look");
      await step(one, way);
      for (let round = 0; round < rounds && one.alive; round++) {
        // It may fail, and end the function: that is its own doing.
        const error = await one.hibernate().catch((thrown: unknown) => thrown);
        if (error instanceof Error) expect(error).toMatchObject({ code: "HIBERNATE_FAILED" });
        if (one.alive) expect(await step(one, "look")).toEqual(before);
      }
    });
  });

  it("ends, whatever a child has it wait for", { timeout: 240_000 }, async () => {
    const told = (thrown: unknown): unknown => thrown;
    for (let instance = 0, endless = false; instance < 8 && !endless; instance++) {
      await withInstance(bench.engine.boot(bench.python(WRITERS)), async (one) => {
        await step(one, "close");
        // Mostly it has other memory or none after the first, which is its own doing.
        for (let round = 0; round < 5 && one.alive; round++) {
          const began = performance.now();
          const error = await one.hibernate().catch(told);
          expect(performance.now() - began, "half a minute, and what ending it takes").toBeLessThan(45_000);
          endless ||= String(error).includes("it does not end what is run on its behalf");
          if (one.alive) await step(one, "look").catch(told);
        }
      });
    }
  });

  it.each(["hibernate", "freeze"] as const)(
    "leaves threads that still run their filter (%s)",
    { timeout: 120_000 },
    async (way) => {
      await withInstance(bench.engine.boot(bench.python(WRITERS)), async (one) => {
        await step(one, "threads");
        for (let round = 0; round < 20; round++) {
          await one[way]();
          expect(await step(one, "errors")).toEqual(["EPERM"]);
        }
      });
    },
  );

  it.each(["filter", "trap"])("is not refused by a filter of its own (%s)", async (way) => {
    await withInstance(bench.engine.boot(bench.python(WRITERS)), async (one) => {
      await step(one, way);
      for (let round = 1; round <= 3; round++) {
        expect(await one.hibernate()).toMatchObject({ cancelled: false });
        expect(await step(one, "state")).toEqual([round, 1, "statestate"]);
      }
    });
  });
});
