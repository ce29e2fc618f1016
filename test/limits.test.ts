/** The limits of a sandbox: each holds, says so, and harms nobody else. No timing finer than a factor of two. */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { type FunctionSpec, type Image, type Instance, LOADERS } from "../src/engine/index.js";
import { ask, errorOf, useBench } from "./support/bench.js";
import { hostPid, withInstance } from "./support/world.js";

const bench = useBench();
afterEach(() => bench.quiet());

const SOURCE = `
import ctypes, errno, mmap, os, resource, signal, socket, struct, threading, time
libc = ctypes.CDLL(None, use_errno=True)
kept = []
def bomb(event):
    """Forks until it is refused; the children fork too, and stay."""
    for _ in range(event["max"]):
        try:
            if os.fork() == 0:
                for _ in range(50):
                    try: os.fork()
                    except OSError: break
                time.sleep(1000)
        except OSError as error:
            return errno.errorcode[error.errno]
    return "no limit"
def threads(event):
    stop = threading.Event()
    started = 0
    threading.stack_size(65536)
    try:
        while started < event["max"]:
            threading.Thread(target=stop.wait, daemon=True).start()
            started += 1
    except RuntimeError as error:
        stop.set()
        return [started, str(error)]
    stop.set()
    return [started, "no limit"]
def fill(event):
    written = 0
    try:
        with open(event["path"], "wb", buffering=0) as file:
            while written < event["max"]: written += file.write(b"x" * (1 << 20))
    except OSError as error:
        outcome = [written >> 20, errno.errorcode[error.errno]]
    else:
        outcome = [written >> 20, "no limit"]
    os.unlink(event["path"])
    return outcome
def files(event):
    kept = []
    try:
        while len(kept) < event["max"]: kept.append(os.open("/dev/null", 0))
        outcome = "no limit"
    except OSError as error:
        outcome = errno.errorcode[error.errno]
    for fd in kept: os.close(fd)
    return [len(kept), outcome]
def burn(event):
    """How much processor time four busy processes get in a while."""
    began = time.monotonic()
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            while time.monotonic() - began < event["seconds"]: pass
            os._exit(0)
        children.append(pid)
    for pid in children: os.waitpid(pid, 0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / (time.monotonic() - began)
def allocate(event):
    kept.append(bytearray(event["mib"] << 20))
    return "held"
def child(event):
    """A child takes all memory; which of them the kernel ends is told by its status."""
    pid = os.fork()
    if pid == 0:
        open("/proc/self/oom_score_adj", "w").write("1000")
        while True: kept.append(bytearray(8 << 20))
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status)
def connections(event):
    """Fills connections to itself that nobody reads."""
    for _ in range(event["max"]):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sender = socket.create_connection(listener.getsockname())
            kept.append((sender, listener.accept()[0]))
        sender.setblocking(False)
        try:
            while True: sender.send(bytes(65536))
        except BlockingIOError: pass
    return "filled"
def core(event): return resource.getrlimit(resource.RLIMIT_CORE)
def queues(event):
    made = 0
    while made < event["max"] and libc.mq_open(b"/q%d" % made, 0o102, 0o600, None) >= 0: made += 1
    return made
def hoard(event):
    kept.append(os.urandom(4096) * (event["mib"] << 8))
    return len(kept)
def shrink(event):
    """Maps as much, writes it, and gives all but one page of what it mapped the time before back."""
    libc.mmap.restype = ctypes.c_void_p
    bytes_ = event["mib"] << 20
    if kept: assert libc.munmap(ctypes.c_void_p(kept[-1] + 4096), ctypes.c_size_t(bytes_ - 4096)) == 0
    kept.append(libc.mmap(None, ctypes.c_size_t(bytes_), 3, 0x22, -1, ctypes.c_long(0)))
    ctypes.memset(ctypes.c_void_p(kept[-1]), len(kept), bytes_)
    return [ctypes.string_at(at, 1)[0] for at in kept]
def reserve(event):
    """Addresses for a terabyte (MAP_NORESERVE), and a byte in every eighth gigabyte."""
    if not kept:
        libc.mmap.restype = ctypes.c_void_p
        kept.append(libc.mmap(None, ctypes.c_size_t(1 << 40), 3, 0x4022, -1, ctypes.c_long(0)))
        for at in range(0, 1 << 40, 8 << 30): ctypes.memset(ctypes.c_void_p(kept[0] + at), 7, 1)
    return sum(ctypes.string_at(kept[0] + at, 1)[0] for at in range(0, 1 << 40, 8 << 30))
def fork(event):
    """Children that look at memory of the function, and stay."""
    for n in range(event["children"]):
        told, tell = os.pipe()
        if os.fork() == 0:
            os.write(tell, b"!" if not kept or ctypes.string_at(kept[0] + (8 << 30), 1) == b"\\x07" else b"?")
            time.sleep(1000)
        if os.read(told, 1) != b"!": return n
    return event["children"]
def library(event):
    """Maps a file in /tmp that says to be a library with a table of names of so many megabytes, all of it a hole; then tells how much of it is there."""
    if not kept:
        size = event["mib"] << 20
        head = b"\\x7fELF\\x02\\x01\\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, event["tables"], 0)
        with open("/tmp/library.so", "wb") as file:
            file.write(head + struct.pack("<IIQQQQIIQQ", 0, 3, 2, 0, 1 << 20, size - (1 << 20), 0, 0, 1, 0) * event["tables"])
            file.truncate(size)
        with open("/tmp/library.so", "rb") as file: kept.append(mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
    return os.stat("/tmp/library.so").st_blocks >> 11
def libraries(event):
    """Maps two files that say to be libraries with a table of names of two megabytes, in turn."""
    head = b"\\x7fELF\\x02\\x01\\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, 1, 0)
    table = struct.pack("<IIQQQQIIQQ", 0, 3, 2, 0, 4096, 2 << 20, 0, 0, 1, 0)
    for name in ("/tmp/one.so", "/tmp/other.so"):
        with open(name, "wb") as file: file.write((head + table).ljust(4096, b"x") + b"x" * (2 << 20))
    with open("/tmp/one.so", "rb") as one, open("/tmp/other.so", "rb") as other:
        for file in (one, other) * event["times"]: kept.append(libc.mmap(0, 4096, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, file.fileno(), 0))
    return len(kept)
def handler(event, context):
    return globals()[event["do"]](event) if "do" in event else "ready"
`;

type Way = "booted" | "thawed";

async function start(way: Way, overrides: Partial<FunctionSpec> = {}): Promise<Instance> {
  const spec = bench.python(SOURCE, overrides);
  return way === "booted" ? await bench.engine.boot(spec) : await bench.engine.thaw(await bench.image(spec));
}

/** Of how many processors an instance may have the time. */
function quotaOf(instance: Instance): number {
  const read = (path: string, file: string): string => readFileSync(join(path, file), "utf8").trim();
  const dir =
    bench.cgroups("cpu").find((path) =>
      read(path, "cgroup.procs")
        .split("\n")
        .includes(String(hostPid(instance))),
    ) ?? "";
  const files =
    dir === bench.cgroups("unified").find((path) => path === dir) ? ["cpu.max"] : ["cpu.cfs_quota_us", "cpu.cfs_period_us"];
  const [quota = 0, period = 0] = files.flatMap((file) => read(dir, file).split(" ")).map(Number);
  return quota / period;
}

describe.each(["booted", "thawed"] as const)("an instance (%s)", (way) => {
  it("that forks without end is refused with EAGAIN, goes on answering, and leaves nothing", async () => {
    await withInstance(start(way, { memoryMb: 1024 }), async (instance) => {
      expect(await ask(instance, { do: "bomb", max: 5000 })).toBe("EAGAIN");
      expect(bench.pids().length).toBeLessThanOrEqual(1026);
      expect(await ask(instance)).toBe("ready");
      // The bomb of one is no matter of the other.
      await withInstance(bench.engine.boot(bench.python(SOURCE)), async (other) => expect(await ask(other)).toBe("ready"));
    });
  });

  it("that makes threads without end is refused, and goes on", async () => {
    await withInstance(start(way, { memoryMb: 1024 }), async (instance) => {
      const [started, message] = (await ask(instance, { do: "threads", max: 3000 })) as [number, string];
      expect(message).toBe("can't start new thread");
      expect(started).toBeGreaterThan(500);
      expect(started).toBeLessThanOrEqual(1024);
      expect(await ask(instance)).toBe("ready");
    });
  });

  it("that fills /tmp gets ENOSPC at the size that it was given", async () => {
    await withInstance(start(way, { memoryMb: 512, tmpMb: 64 }), async (instance) => {
      expect(await ask(instance, { do: "fill", path: "/tmp/large", max: 200 << 20 })).toEqual([64, "ENOSPC"]);
      expect(await ask(instance, { do: "fill", path: "/tmp/again", max: 32 << 20 })).toEqual([32, "no limit"]);
      expect(await ask(instance, { do: "fill", path: "/dev/shm/large", max: 200 << 20 })).toEqual([64, "ENOSPC"]);
    });
  });

  it("whose files in /tmp and memory together pass its limit is killed, and told so", async () => {
    await withInstance(start(way, { memoryMb: 128 }), async (instance) => {
      const result = await instance.invoke(JSON.stringify({ do: "fill", path: "/tmp/large", max: 400 << 20 }));
      expect(errorOf(result).errorMessage).toContain("the function was killed at its memory limit of 128 MB");
      expect(result.platformError).toBe("OUT_OF_MEMORY");
    });
  });

  it("stays below its memory limit, and is killed above it", async () => {
    await withInstance(start(way, { memoryMb: 256 }), async (instance) => {
      expect(await ask(instance, { do: "allocate", mib: 128 })).toBe("held");
      const result = await instance.invoke(JSON.stringify({ do: "allocate", mib: 256 }));
      expect(errorOf(result)).toMatchObject({
        errorType: "Runtime.OutOfMemory",
        errorMessage: expect.stringContaining("at its memory limit of 256 MB"),
      });
      expect([result.platformError, result.alive]).toEqual(["OUT_OF_MEMORY", false]);
      expect(result.maxMemoryMb).toBeGreaterThan(128);
      expect(result.maxMemoryMb).toBeLessThanOrEqual(256);
    });
  });

  it("whose child runs out of memory goes on when only that is killed", async () => {
    await withInstance(start(way, { memoryMb: 128 }), async (instance) => {
      expect(await ask(instance, { do: "child" })).toBe(9);
      expect(await ask(instance)).toBe("ready");
    });
  });

  it("may open 1,024 files and no more", async () => {
    await withInstance(start(way), async (instance) => {
      const [opened, outcome] = (await ask(instance, { do: "files", max: 5000 })) as [number, string];
      expect(outcome).toBe("EMFILE");
      expect(opened).toBeGreaterThan(1000);
      expect(opened).toBeLessThanOrEqual(1021);
      expect(await ask(instance, { do: "core" })).toEqual([1, 1]);
    });
  });

  it("takes no more memory in buffers of TCP than it is given and 64 MB", async () => {
    const buffers = (): number => 4096 * Number(/^TCP: .* mem (\d+)$/m.exec(readFileSync("/proc/net/sockstat", "utf8"))?.[1]);
    const before = buffers();
    await withInstance(start(way, { memoryMb: 128 }), async (instance) => {
      // Where they are counted with the rest it may be killed for them.
      await instance.invoke(JSON.stringify({ do: "connections", max: 60 }));
      expect(buffers() - before).toBeLessThan((128 + 64) * 1024 * 1024);
    });
  });

  it("gets the share of a processor that its memory stands for, and not more", async () => {
    // One processor for anything below 1,769 MB.
    await withInstance(start(way, { memoryMb: 512 }), async (instance) => {
      // In force before what is sent from here on; this is another way to the same files.
      await expect.poll(() => quotaOf(instance)).toBe(1);
      const processors = (await ask(instance, { do: "burn", seconds: 1 })) as number;
      expect(processors).toBeLessThan(1.6);
      // How much of its share there is to be had depends on what else the machine does.
      expect(processors).toBeGreaterThan(0.02);
    });
  });
});

describe("limits", () => {
  it("of one instance are as new for the next that gets its cgroup", async () => {
    for (let turn = 0; turn < 4; turn++) {
      const memoryMb = turn % 2 === 0 ? 96 : 400;
      await withInstance(start("booted", { memoryMb }), async (instance) => {
        const result = await instance.invoke(JSON.stringify({ do: "allocate", mib: 200 }));
        expect(result.platformError).toBe(turn % 2 === 0 ? "OUT_OF_MEMORY" : undefined);
      });
      await bench.quiet();
    }
    expect(bench.cgroups("memory").length).toBeLessThan(8);
  });

  it("hold for what is hibernated: an instance that has as much on disk as it may have in memory is not hibernated again", async () => {
    const spec = bench.python(SOURCE, { memoryMb: 128 });
    await withInstance(bench.engine.boot(spec), async (instance) => {
      const bytes: number[] = [];
      const hibernated = async (): Promise<unknown> => {
        bytes.push((await instance.hibernate()).hibernatedBytes);
        return undefined;
      };
      let told: unknown;
      while (told === undefined) {
        expect(bytes.length).toBeLessThan(5);
        expect(await ask(instance, { do: "hoard", mib: 60 })).toBe(bytes.length + 1);
        told = await hibernated().catch((error: unknown) => error);
      }
      expect(told).toMatchObject({ code: "HIBERNATE_REFUSED", details: { scope: "instance" } });
      expect(String(told)).toMatch(/what it was hibernated with takes \d+ MiB, and it may have 128 MiB of memory/);
      expect(Math.max(...bytes)).toBeLessThan(256 << 20);
      expect(await ask(instance)).toBe("ready");
    });
  });

  it("are not passed by memory that is gone: what of it lies on disk goes, down to the page", async () => {
    const spec = bench.python(SOURCE, { memoryMb: 128 });
    await withInstance(bench.engine.boot(spec), async (instance) => {
      for (let round = 1; round <= 5; round++) {
        const values = Array.from({ length: round }, (_, index) => index + 1);
        expect(await ask(instance, { do: "shrink", mib: 50 })).toEqual(values);
        expect((await instance.hibernate()).hibernatedBytes).toBeLessThan(100 << 20);
      }
    });
  });

  it("hold for what the pager keeps of children: who forks with a terabyte of addresses is ended", async () => {
    const spec = bench.python(SOURCE, { memoryMb: 128 });
    const forked = (image: Image, children: number): Promise<unknown> =>
      withInstance(bench.engine.thaw(image, { loader: "reap" }), (clone) => ask(clone, { do: "fork", children }));
    const [usual, vast] = [await bench.image(spec), await bench.image(spec, { do: "reserve" })];
    expect(await forked(usual, 20)).toBe(20);
    expect(String(await forked(vast, 2).catch((error: unknown) => error))).toContain(
      "it forks with more memory than the pager can keep count of",
    );
  });

  it.each([
    ["whoever reads its files: holes in them stay holes", 400, 1],
    ["and files that would be read for hours are not", 64 << 20, 20_000],
  ])("hold (%s)", { timeout: 120_000 }, async (_what, mib, tables) => {
    await withInstance(bench.engine.boot(bench.python(SOURCE, { memoryMb: 128 })), async (instance) => {
      const event = { do: "library", mib, tables };
      const there = (await ask(instance, event)) as number;
      expect(there).toBeLessThan(4);
      await instance
        .freeze({ then: "continue" })
        .catch((error: unknown) => expect(error).toMatchObject({ code: "FREEZE_REFUSED" }));
      expect((await instance.hibernate()).cancelled).toBe(false);
      expect(await ask(instance, event)).toBe(there);
    });
  });

  it("hold for what is looked through of its code: whoever maps two libraries in turn, a thousand times, is refused", async () => {
    await withInstance(bench.engine.boot(bench.python(SOURCE, { memoryMb: 128 })), async (instance) => {
      expect(await ask(instance, { do: "libraries", times: 400 })).toBe(800);
      await instance.hibernate();
      expect(await ask(instance, { do: "libraries", times: 1000 })).toBe(2800);
      await expect(instance.hibernate()).rejects.toMatchObject({
        code: "HIBERNATE_REFUSED",
        message: expect.stringContaining("it maps more code than is looked through for its allocators (4 GiB)"),
      });
      expect(await ask(instance, { do: "libraries", times: 1 })).toBe(2802);
    });
  });

  it("do not count addresses: a function that reserved more than the machine has is hibernated, frozen and thawed", async () => {
    await withInstance(bench.engine.boot(bench.python(SOURCE, { memoryMb: 128 })), async (instance) => {
      const reserve = (one: Instance): Promise<unknown> => ask(one, { do: "reserve" });
      expect(await reserve(instance)).toBe(128 * 7);
      const image = await instance.freeze({ then: "continue" });
      expect((await instance.hibernate()).cancelled).toBe(false);
      expect(await reserve(instance)).toBe(128 * 7);
      for (const loader of LOADERS)
        await withInstance(bench.engine.thaw(image, { loader }), async (clone) =>
          expect(await reserve(clone), loader).toBe(128 * 7),
        );
    });
  });

  // Last: this process does not get its own limit back.
  it("that the server has lower than when an image was made hold for its clones, which start", async () => {
    const spec = bench.python(
      `
import resource
resource.setrlimit(resource.RLIMIT_SIGPENDING, (20, 200))
def handler(event, context): return [resource.getrlimit(kind) for kind in (resource.RLIMIT_MSGQUEUE, resource.RLIMIT_NOFILE, resource.RLIMIT_SIGPENDING)]
`,
    );
    const image = await bench.image(spec);
    execFileSync("prlimit", ["--pid", String(process.pid), "--msgqueue=4096:4096", "--sigpending=100:100"]);
    await bench.reopen();
    const again = await bench.engine.openImage(image.dir);
    await withInstance(bench.engine.thaw(again), async (instance) => {
      expect(await ask(instance)).toEqual([
        [4096, 4096],
        [1024, 1024],
        [20, 100],
      ]);
    });
  });
});
