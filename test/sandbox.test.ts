/**
 * What a function may not do, tried by functions: each attempt gets the error that Linux gives an unprivileged process, booted and
 * thawed alike, and the host is afterwards as it was.
 */
import { chmodSync, copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, watch, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { hostname } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type FunctionSpec, type Instance, openEngine } from "../src/engine/index.js";
import { ask, refusal, useBench } from "./support/bench.js";
import { hostPid } from "./support/world.js";

const bench = useBench();

/** Runs statements that leave their outcome in `out`; `call` is any system call, `attempt` any Python call: the value, or the errno's name. */
const PYTHON_PROBE = `
import ctypes, errno, os, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(nr, *args):
    ctypes.set_errno(0)
    words = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_void_p(a) if isinstance(a, int) and a >= 0 else ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    got = libc.syscall(ctypes.c_long(nr), *words)
    return got if got >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(work, *args):
    try:
        return work(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    except ValueError:
        return "EPERM"
def read(path, count=4096):
    with open(path, "rb") as file:
        return file.read(count).decode("utf8", "replace")
def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)
    return "written"
kept = []
names = dict(globals())
def handler(event, context):
    scope = dict(names, out=None, kept=kept, **event.get("values", {}))
    exec(event["code"], scope)
    return scope["out"]
`;

const NODE_PROBE = `
exports.handler = async (event) => {
  const attempt = async (work) => {
    try { const value = await work(); return value === undefined ? "ok" : value; } catch (error) { return error.code ?? String(error); }
  };
  return await new (Object.getPrototypeOf(async () => {}).constructor)("require", "attempt", "values", event.code)(require, attempt, event.values ?? {});
};
`;

/** Thawed in a husk that is new, that had the runtime mapped and threads made, and parked ones. */
const WAYS = ["booted", "thawed", "runtime", "image", "prefaulted"] as const;
type Way = (typeof WAYS)[number];

interface Probe {
  /** Runs code inside and returns its outcome. */
  run(code: string, values?: Record<string, unknown>): Promise<unknown>;
  readonly instance: Instance;
}

const probes = new Map<string, Probe>();
let server: Server;
let port = 0;
const ABSTRACT = `\0thaw-test-${process.pid}`;
let abstractServer: Server;
let spec: Record<"python" | "node", FunctionSpec>;

async function start(language: "python" | "node", way: Way): Promise<Instance> {
  if (way === "booted") return await bench.engine.boot(spec[language]);
  const image = await bench.image(spec[language], language === "python" ? { code: "out = 1" } : { code: "return 1" });
  if (way === "thawed") return await bench.engine.thaw(image, { husk: "fresh" });
  bench.engine.park(image, way, 1);
  await bench.engine.poolsFull(20_000);
  const instance = await bench.engine.thaw(image, way === "runtime" ? {} : { husk: "parked" });
  expect(instance.start.husk).toBe(way);
  bench.engine.park(image, way, 0);
  return instance;
}

function probeOf(instance: Instance): Probe {
  return { instance, run: (code, values = {}) => ask(instance, { code, values }) };
}

function probe(language: "python" | "node", way: Way): Probe {
  const found = probes.get(`${language} ${way}`);
  if (found === undefined) throw new Error("no such probe");
  return found;
}

beforeAll(async () => {
  spec = { python: bench.python(PYTHON_PROBE, { env: { SECRETLESS: "yes" } }), node: bench.node(NODE_PROBE) };
  // Writable by anybody as far as modes go: only the mount can refuse.
  for (const { codeDir } of Object.values(spec)) {
    writeFileSync(join(codeDir, "open.txt"), "open");
    chmodSync(join(codeDir, "open.txt"), 0o666);
    chmodSync(codeDir, 0o777);
  }
  for (const language of ["python", "node"] as const)
    for (const way of WAYS) probes.set(`${language} ${way}`, probeOf(await start(language, way)));
  server = createServer((socket) => socket.end("host"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  port = typeof address === "object" && address !== null ? address.port : 0;
  abstractServer = createServer((socket) => socket.end("host"));
  await new Promise<void>((resolve) => abstractServer.listen(ABSTRACT, resolve));
});

afterAll(async () => {
  for (const { instance } of probes.values()) await instance.dispose();
  server.close();
  abstractServer.close();
});

function each(title: string, body: (python: Probe, node: Probe) => Promise<void>): void {
  for (const way of WAYS) it(`${title} (${way})`, () => body(probe("python", way), probe("node", way)));
}

/** Attempts by name, each an expression of the probe's language, and what each must answer. */
async function expectAll(
  run: (name: string, code: string) => Promise<unknown>,
  table: Readonly<Record<string, readonly [code: string, answer: unknown]>>,
): Promise<void> {
  const found: Record<string, unknown> = {};
  for (const [name, [code]] of Object.entries(table)) found[name] = await run(name, code);
  expect(found).toEqual(Object.fromEntries(Object.entries(table).map(([name, [, answer]]) => [name, answer])));
}

describe("a function's credentials", () => {
  each("are those of an ordinary user, for good", async (python, node) => {
    const wanted: Record<string, string> = {
      Uid: "1000\t1000\t1000\t1000",
      Gid: "1000\t1000\t1000\t1000",
      Groups: "",
      CapInh: "0000000000000000",
      CapPrm: "0000000000000000",
      CapEff: "0000000000000000",
      CapBnd: "0000000000000000",
      CapAmb: "0000000000000000",
      NoNewPrivs: "1",
      Seccomp: "2",
    };
    const code = "[read('/proc/self/task/%s/status' % t) for t in os.listdir('/proc/self/task')]";
    const texts = [
      ...((await python.run(`out = ${code}`)) as string[]),
      ...((await node.run(
        "const fs = require('fs'); return fs.readdirSync('/proc/self/task').map((t) => fs.readFileSync('/proc/self/task/' + t + '/status', 'utf8'))",
      )) as string[]),
    ];
    expect(texts.length).toBeGreaterThan(3);
    for (const text of texts) {
      const fields = Object.fromEntries(
        text.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]),
      );
      for (const [name, value] of Object.entries(wanted)) expect(fields[name], name).toBe(value);
    }
  });

  each("cannot be changed", async (python) => {
    await expectAll((_name, code) => python.run(`out = ${code}`), {
      "setuid(0)": ["attempt(os.setuid, 0)", "EINVAL"],
      "setgid(0)": ["attempt(os.setgid, 0)", "EINVAL"],
      "setresuid(1001)": ["attempt(os.setresuid, 1001, 1001, 1001)", "EINVAL"],
      "setgroups([1000])": ["attempt(os.setgroups, [1000])", "EPERM"],
      "capset of all": [
        "call(126, ctypes.create_string_buffer(b'\\x22\\x05\\x08\\x20' + bytes(4)), ctypes.create_string_buffer(b'\\xff' * 24))",
        "EPERM",
      ],
      "ambient capability": ["call(157, 47, 2, 21, 0, 0)", "EPERM"],
      "new uid map": ["attempt(write, '/proc/self/uid_map', '0 0 1')", "EPERM"],
      "setgroups file": ["attempt(write, '/proc/self/setgroups', 'allow')", expect.stringMatching(/^(EPERM|EACCES)$/)],
      "lower nice value": ["attempt(os.setpriority, os.PRIO_PROCESS, 0, -5)", "EACCES"],
      "real-time scheduling": ["attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(10))", "EPERM"],
    });
  });

  each("come with the working directory and the environment of a function, and no more", async (python, node) => {
    expect(await python.run("out = [os.getcwd(), os.environ['HOME'], os.environ['SECRETLESS'], socket.gethostname()]")).toEqual([
      "/var/task",
      "/tmp",
      "yes",
      "thaw",
    ]);
    const reserved = /^(AWS_|LAMBDA_|_HANDLER$)/;
    const known = [
      "HOME",
      "LANG",
      "LD_PRELOAD",
      "MALLOC_ARENA_MAX",
      "NODE_PATH",
      "PATH",
      "PYTHONDONTWRITEBYTECODE",
      "SECRETLESS",
      "TZ",
      "UV_USE_IO_URING",
    ];
    for (const names of [
      await python.run("out = list(os.environ)"),
      await node.run("return Object.keys(process.env)"),
    ] as string[][]) {
      expect(names.filter((name) => !reserved.test(name) && !known.includes(name))).toEqual([]);
    }
    // Only what the runtime needs is open: input, output, the control socket; Node has its event loop besides.
    expect(
      await python.run("out = sorted(int(f) for f in os.listdir('/proc/self/fd') if os.path.lexists('/proc/self/fd/' + f))"),
    ).toEqual([0, 1, 2, 3]);
    const links = (await node.run(
      "const fs = require('fs'); return fs.readdirSync('/proc/self/fd').map((f) => { try { return fs.readlinkSync('/proc/self/fd/' + f); } catch { return ''; } })",
    )) as string[];
    for (const link of links) expect(link).toMatch(/^(|\/dev\/null|(pipe|socket):\[\d+\]|anon_inode:\[(eventpoll|eventfd)\])$/);
  });
});

describe("a function's view of files", () => {
  each("has nothing of the host but what its interpreter needs", async (python, node) => {
    // By name, and whatever is mounted: what somebody adds to the root by mistake must show here.
    for (const { run } of [python, node]) {
      const isPython = run === python.run;
      const names = async (path: string): Promise<unknown> =>
        isPython ? run(`out = sorted(os.listdir('${path}'))`) : run(`return require('fs').readdirSync('${path}').sort()`);
      expect([await names("/var"), await names("/run"), await names("/run/thaw")]).toEqual([
        ["runtime", "task"],
        ["thaw"],
        ["husk", "shim.so"],
      ]);
      const top = (await names("/")) as string[];
      const ours = [
        "bin",
        "dev",
        "etc",
        "lib",
        "lib64",
        "node_modules",
        "opt",
        "proc",
        "root",
        "run",
        "sbin",
        "tmp",
        "usr",
        "var",
      ];
      const prefix = String(await run(isPython ? "import sys\nout = sys.base_prefix" : "return process.execPath"));
      expect(top.filter((name) => !ours.includes(name) && !prefix.startsWith(`/${name}/`))).toEqual([]);
      const info = String(
        await run(
          isPython
            ? "out = read('/proc/self/mountinfo', 1 << 20)"
            : "return require('fs').readFileSync('/proc/self/mountinfo', 'utf8')",
        ),
      );
      const mounted = info
        .trim()
        .split("\n")
        .map((line) => line.split(" ")[4] ?? "");
      const known =
        /^\/($|proc$|tmp$|dev\/\w+$|var\/(task|runtime)$|run\/thaw\/(husk|shim\.so)$|(usr\/)?lib(64|32|x32)?(\/|$)|usr\/share\/|etc\/ssl)/;
      expect(mounted.filter((path) => !known.test(path) && !prefix.startsWith(path) && !path.startsWith(prefix))).toEqual([]);
    }
    const secrets = [
      "/etc/shadow",
      "/home",
      "/root/.ssh",
      "/sys/fs/cgroup",
      "/boot",
      "/dev/mem",
      "/dev/kmsg",
      "/dev/tty",
      "/dev/fuse",
      "/dev/kvm",
      "/dev/userfaultfd",
      bench.dataDir,
      bench.root,
      import.meta.filename,
    ];
    for (const path of secrets) {
      expect(await python.run(`out = attempt(os.stat, values_path)`, { values_path: path }), path).toBe("ENOENT");
      expect(
        await node.run("return await attempt(() => require('fs').promises.stat(values.path).then(() => 'there'))", { path }),
        path,
      ).toBe("ENOENT");
    }
    // The other function's code lies beside ours on the host.
    expect(await python.run("out = sorted(os.listdir('/var/task'))")).toEqual(["index.py", "open.txt"]);
    expect(await node.run("return require('fs').readdirSync('/var/task').sort()")).toEqual(["index.js", "open.txt"]);
    expect(await python.run("out = read('/etc/passwd')")).not.toContain("daemon");
  });

  each("has the names of services, protocols and libraries", async (python) => {
    expect(
      await python.run(
        "out = [socket.getaddrinfo('127.0.0.1', 'https', type=socket.SOCK_STREAM)[0][4], socket.getservbyport(5432), socket.getprotobyname('tcp')]",
      ),
    ).toEqual([["127.0.0.1", 443], "postgresql", 6]);
    expect(await python.run("from ctypes.util import find_library\nout = find_library('c')")).toBe("libc.so.6");
  });

  each("can be written to in /tmp and /dev/shm, and nowhere else", async (python) => {
    await expectAll((_name, code) => python.run(`out = ${code}`), {
      "/tmp": ["attempt(write, '/tmp/mine')", "written"],
      "new file in /var/task": ["attempt(write, '/var/task/new')", "EROFS"],
      "file that anybody may write in /var/task": ["attempt(write, '/var/task/open.txt')", "EROFS"],
      "unlink in /var/task": ["attempt(os.unlink, '/var/task/open.txt')", "EROFS"],
      "rename in /var/task": ["attempt(os.rename, '/var/task/open.txt', '/var/task/other.txt')", "EROFS"],
      "chmod in /var/task": ["attempt(os.chmod, '/var/task/open.txt', 0o600)", "EROFS"],
      "utime in /var/task": ["attempt(os.utime, '/var/task/open.txt')", "EROFS"],
      "link out of /var/task": ["attempt(os.link, '/var/task/open.txt', '/tmp/link')", "EXDEV"],
      "/": ["attempt(write, '/new')", "EROFS"],
      "/usr": ["attempt(write, '/usr/new')", "EROFS"],
      "/usr/lib": ["attempt(write, '/usr/lib/x86_64-linux-gnu/new')", "EROFS"],
      "/etc": ["attempt(write, '/etc/new')", "EROFS"],
      "/opt": ["attempt(os.mkdir, '/opt/new')", "EROFS"],
      "/var/runtime": ["attempt(write, '/var/runtime/new')", "EROFS"],
      "/dev": ["attempt(write, '/dev/new')", "EROFS"],
      "a program's own file": ["attempt(write, '/run/thaw/husk')", expect.stringMatching(/^(EROFS|EACCES)$/)],
      "/proc/sys": ["attempt(write, '/proc/sys/kernel/hostname')", "EACCES"],
      core_pattern: ["attempt(write, '/proc/sys/kernel/core_pattern')", "EACCES"],
      drop_caches: ["attempt(write, '/proc/sys/vm/drop_caches', '3')", "EACCES"],
      "limits of the user namespace": ["attempt(write, '/proc/sys/user/max_user_namespaces', '9')", "EACCES"],
      // Some kernels are built without these.
      sysrq: ["attempt(write, '/proc/sysrq-trigger', 's')", expect.stringMatching(/^(EACCES|ENOENT)$/)],
      kcore: ["attempt(read, '/proc/kcore')", expect.stringMatching(/^(EACCES|ENOENT)$/)],
      kmsg: ["attempt(read, '/proc/kmsg')", expect.stringMatching(/^(EACCES|EPERM|ENOENT)$/)],
    });
    expect(readFileSync(join(spec.python.codeDir, "open.txt"), "utf8")).toBe("open");
  });

  each("cannot be rearranged", async (python) => {
    await expectAll((_name, code) => python.run(`out = ${code}`), {
      mount: ["call(165, b'none', b'/tmp', b'tmpfs', 0, 0)", "EPERM"],
      "bind mount": ["call(165, b'/', b'/tmp', 0, 4096, 0)", "EPERM"],
      remount: ["call(165, b'', b'/var/task', 0, 32 | 4096, 0)", "EPERM"],
      umount: ["call(166, b'/var/task', 2)", "EPERM"],
      pivot_root: ["call(155, b'/tmp', b'/tmp')", "EPERM"],
      chroot: ["attempt(os.chroot, '/tmp')", "EPERM"],
      open_tree: ["call(428, -100, b'/', 1)", "EPERM"],
      move_mount: ["call(429, -100, b'/var/task', -100, b'/tmp', 0)", "EPERM"],
      fsopen: ["call(430, b'tmpfs', 0)", "EPERM"],
      fsmount: ["call(432, 3, 0, 0)", "EPERM"],
      mount_setattr: ["call(442, -100, b'/', 0, ctypes.create_string_buffer(32), 32)", "EPERM"],
      open_by_handle_at: ["call(304, 3, ctypes.create_string_buffer(64), 0)", "EPERM"],
      "mknod of a disk": ["attempt(os.mknod, '/tmp/disk', 0o060600, os.makedev(254, 0))", "EPERM"],
      "mknod of memory": ["attempt(os.mknod, '/tmp/mem', 0o020600, os.makedev(1, 1))", "EPERM"],
      "chown away": ["attempt(os.chown, '/tmp', 0, 0)", "EINVAL"],
    });
  });
});

describe("a function's view of processes", () => {
  each("has its own and the sandbox's init", async (python, node) => {
    for (const pids of [
      await python.run("out = [int(p) for p in os.listdir('/proc') if p.isdigit()]"),
      await node.run("return require('fs').readdirSync('/proc').filter((p) => /^[0-9]+$/.test(p)).map(Number)"),
    ] as number[][]) {
      expect(pids).toHaveLength(2);
      expect(pids).toContain(1);
    }
    const sweep = "out = {p: r for p in range(1, 32769) for r in [attempt(os.kill, p, 0)] if r != 'ESRCH' and p != os.getpid()}";
    expect(await python.run(sweep)).toEqual({ "1": "EPERM" });
  });

  each("does not let it signal, trace or read init or anybody", async (python, node) => {
    const { run } = python;
    for (const signal of [0, 1, 9, 15, 19])
      expect(await run(`out = attempt(os.kill, 1, ${signal})`), `signal ${signal}`).toBe("EPERM");
    expect(await run("out = attempt(os.kill, -1, 9)"), "everybody else").toBe("ESRCH");
    expect(await node.run("return await attempt(() => process.kill(1, 'SIGKILL'))")).toBe("EPERM");
    // For everyone to read, and it must not tell where the host keeps things.
    expect(await run("out = read('/proc/1/cmdline').rstrip(chr(0))"), "command line of init").toBe("init");
    await expectAll((_name, code) => run(`out = ${code}`), {
      "ptrace attach": ["call(101, 16, 1, 0, 0)", "EPERM"],
      "ptrace seize": ["call(101, 0x4206, 1, 0, 0)", "EPERM"],
      "ptrace of itself": ["call(101, 0, 0, 0, 0)", "EPERM"],
      process_vm_readv: ["call(310, 1, ctypes.create_string_buffer(16), 1, ctypes.create_string_buffer(16), 1, 0)", "EPERM"],
      "memory of init": ["attempt(read, '/proc/1/mem')", "EACCES"],
      "maps of init": ["attempt(read, '/proc/1/maps')", "EACCES"],
      "environment of init": ["attempt(read, '/proc/1/environ')", "EACCES"],
      "root of init": ["attempt(os.listdir, '/proc/1/root')", "EACCES"],
      "descriptors of init": ["attempt(os.listdir, '/proc/1/fd')", "EACCES"],
      "namespaces of init": ["attempt(os.readlink, '/proc/1/ns/mnt')", "EACCES"],
      "pidfd_getfd from init": ["call(438, call(434, 1, 0), 0, 0)", "EPERM"],
      "signal init by pidfd": ["call(424, call(434, 1, 0), 9, 0, 0)", "EPERM"],
      "limits of init": ["attempt(resource.prlimit, 1, resource.RLIMIT_NOFILE, (10, 10))", "EPERM"],
      kcmp: ["call(312, 1, 1, 0, 0, 0)", "EPERM"],
    });
  });

  each("does not let it leave its namespaces or make others", async (python) => {
    const { run } = python;
    for (const [name, flag] of Object.entries({
      user: 0x10000000,
      mnt: 0x20000,
      pid: 0x20000000,
      net: 0x40000000,
      ipc: 0x8000000,
      uts: 0x4000000,
      cgroup: 0x2000000,
      time: 0x80,
    })) {
      expect(await run(`out = call(272, ${flag})`), `unshare ${name}`).toBe("EPERM");
      if (name !== "time") expect(await run(`out = call(56, ${flag} | 17, 0, 0, 0, 0)`), `clone ${name}`).toBe("EPERM");
      expect(
        await run(`fd = os.open('/proc/self/ns/${name}', 0)\nout = call(308, fd, 0), call(308, fd, ${flag})\nos.close(fd)`),
        `setns ${name}`,
      ).toEqual(["EPERM", "EPERM"]);
    }
    expect(await run("out = call(435, ctypes.create_string_buffer(88), 88)"), "clone3").toBe("ENOSYS");
  });
});

describe("the kernel", () => {
  each("gives a function none of its levers", async (python) => {
    await expectAll((_name, code) => python.run(`out = ${code}`), {
      init_module: ["call(175, ctypes.create_string_buffer(8), 8, b'')", "EPERM"],
      finit_module: ["call(313, 0, b'', 0)", "EPERM"],
      delete_module: ["call(176, b'ext4', 0)", "EPERM"],
      kexec_load: ["call(246, 0, 0, 0, 0)", "EPERM"],
      reboot: ["call(169, 0xfee1dead, 672274793, 0, 0)", "EPERM"],
      swapon: ["call(167, b'/tmp/x', 0)", "EPERM"],
      sethostname: ["call(170, b'mine', 4)", "EPERM"],
      settimeofday: ["call(164, ctypes.create_string_buffer(16), 0)", "EPERM"],
      clock_settime: ["call(227, 0, ctypes.create_string_buffer(16))", "EPERM"],
      bpf: ["call(321, 0, ctypes.create_string_buffer(128), 128)", "EPERM"],
      perf_event_open: ["call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)", "EPERM"],
      keyctl: ["call(250, 0, -3, 1)", "EPERM"],
      add_key: ["call(248, b'user', b'x', b'y', 1, -3)", "EPERM"],
      userfaultfd: ["call(323, 0)", "EPERM"],
      fanotify_init: ["call(300, 0, 0)", "EPERM"],
      syslog: ["call(103, 3, ctypes.create_string_buffer(64), 64)", "EPERM"],
      acct: ["call(163, 0)", "EPERM"],
      quotactl: ["call(179, 0, 0, 0, 0)", "EPERM"],
      iopl: ["call(172, 3)", "EPERM"],
      pkey_alloc: ["call(330, 0, 0)", "ENOSYS"],
      io_uring_setup: ["call(425, 1, ctypes.create_string_buffer(120))", "ENOSYS"],
      landlock_create_ruleset: ["call(444, 0, 0, 1)", "ENOSYS"],
      landlock_restrict_self: ["call(446, 0, 0)", "ENOSYS"],
      memfd_secret: ["call(447, 0)", "ENOSYS"],
      "personality without address checks": ["call(135, 0x0100000)", "EPERM"],
      TIOCSTI: ["call(16, 0, 0x5412, ctypes.create_string_buffer(b'x'))", "EPERM"],
    });
  });

  each("does not let it raise its limits", async (python) => {
    const { run } = python;
    for (const name of [
      "RLIMIT_NOFILE",
      "RLIMIT_CORE",
      "RLIMIT_MEMLOCK",
      "RLIMIT_MSGQUEUE",
      "RLIMIT_SIGPENDING",
      "RLIMIT_NPROC",
      "RLIMIT_NICE",
      "RLIMIT_RTPRIO",
    ]) {
      const raise = `soft, hard = resource.getrlimit(resource.${name})\nout = attempt(resource.setrlimit, resource.${name}, (hard + 1, hard + 1)) if hard >= 0 else 'EPERM'`;
      expect(await run(raise), name).toBe("EPERM");
    }
    expect(await run("out = attempt(os.listdir, '/sys')"), "cgroup files").toBe("ENOENT");
    expect(await run("out = [line for line in read('/proc/self/mountinfo').split('\\n') if 'cgroup' in line]")).toEqual([]);
    // Its cgroups are the root of what it sees.
    const lines = String(await run("out = read('/proc/self/cgroup')"))
      .trim()
      .split("\n");
    for (const line of lines) expect(line).toMatch(/:\/$/);
  });

  each(
    "does not let it hold the pipe that the keeper reads its output from, and copies files all the same",
    async (python, node) => {
      await expectAll((_name, code) => python.run(`import shutil\nout = ${code}`), {
        "from a socket that says nothing": ["call(275, socket.socketpair()[0].fileno(), 0, 1, 0, 65536, 0)", "EINVAL"],
        "from memory": ["call(278, 1, 0, 0, 0)", "EINVAL"],
        "from a pipe": ["call(276, os.pipe()[0], 1, 1, 0)", "EINVAL"],
        "from a file": ["call(40, 1, os.open('/proc/self/maps', os.O_RDONLY), 0, 1)", "EINVAL"],
        "copies a file": [
          "[write('/tmp/copied', 'x' * 9000), shutil.copyfile('/tmp/copied', '/tmp/copy'), os.path.getsize('/tmp/copy')][2]",
          9000,
        ],
      });
      const copy =
        "const fs = require('fs'); fs.writeFileSync('/tmp/from', 'x'.repeat(9000)); fs.copyFileSync('/tmp/from', '/tmp/to'); return fs.statSync('/tmp/to').size";
      expect(await node.run(copy)).toBe(9000);
    },
  );

  each("does not let one function use up what the host counts by user", async (python) => {
    const { run } = python;
    expect(
      await run(
        "made = [call(294, 0) for _ in range(1100)]\nkept.extend(fd for fd in made if isinstance(fd, int))\nout = made[-1]",
      ),
      "inotify_init1",
    ).toBe("EMFILE");
    // The host's root, and another function, still get theirs.
    for (let index = 0; index < 4; index++) watch(bench.root).close();
    const other = await bench.engine.boot(spec.python);
    expect(typeof (await ask(other, { code: "out = call(294, 0)" }))).toBe("number");
    await other.dispose();
    await run("[os.close(fd) for fd in kept]; kept.clear()");
  });
});

describe("the network of a function", () => {
  each("is its own loopback", async (python, node) => {
    const interfaces = await node.run("return Object.keys(require('os').networkInterfaces())");
    expect(interfaces).toEqual(["lo"]);
    expect(await python.run("out = [name for _, name in socket.if_nameindex()]")).toEqual(["lo"]);
    const dial = (code: string, values: Record<string, unknown> = {}): Promise<unknown> => python.run(code, values);
    await expectAll(
      (_name, code) =>
        dial(`s = socket.socket(*${code.split("|")[0]})\nout = attempt(s.connect, ${code.split("|")[1]})\ns.close()`, {
          port,
          abstract: ABSTRACT,
        }),
      {
        "TCP to the world": ["(socket.AF_INET, socket.SOCK_STREAM)|('8.8.8.8', 53)", "ENETUNREACH"],
        "UDP to the world": ["(socket.AF_INET, socket.SOCK_DGRAM)|('8.8.8.8', 53)", "ENETUNREACH"],
        "IPv6 to the world": ["(socket.AF_INET6, socket.SOCK_STREAM)|('2001:4860:4860::8888', 53)", "ENETUNREACH"],
        "link-local": ["(socket.AF_INET, socket.SOCK_STREAM)|('169.254.169.254', 80)", "ENETUNREACH"],
        "a server on the host's loopback": ["(socket.AF_INET, socket.SOCK_STREAM)|('127.0.0.1', port)", "ECONNREFUSED"],
        "an abstract socket of the host": ["(socket.AF_UNIX, socket.SOCK_STREAM)|abstract", "ECONNREFUSED"],
      },
    );
    expect(
      await node.run(
        "return await attempt(() => new Promise((resolve, reject) => require('net').connect(53, '8.8.8.8').on('connect', resolve).on('error', reject)))",
      ),
    ).toBe("ENETUNREACH");
    expect(
      await node.run(
        "return await attempt(() => fetch('http://example.com/').then(() => 'reached', (error) => error.cause.code))",
      ),
    ).toMatch(/^(EAI_AGAIN|ENOTFOUND|ECONNREFUSED)$/);
  });

  each("has no way around it", async (python) => {
    await expectAll((_name, code) => python.run(`out = attempt(lambda: socket.socket(${code}).close() or 'made')`), {
      vsock: ["40, socket.SOCK_STREAM", "EAFNOSUPPORT"],
      packet: ["17, socket.SOCK_RAW", "EAFNOSUPPORT"],
      "crypto of the kernel": ["38, socket.SOCK_SEQPACKET", "EAFNOSUPPORT"],
      bluetooth: ["31, socket.SOCK_RAW", "EAFNOSUPPORT"],
      "device events": ["16, socket.SOCK_RAW, 15", "EPROTONOSUPPORT"],
      audit: ["16, socket.SOCK_RAW, 9", "EPROTONOSUPPORT"],
      "raw IP": ["2, socket.SOCK_RAW, 1", "EPERM"],
      SCTP: ["2, socket.SOCK_STREAM, 132", "EPROTONOSUPPORT"],
    });
    expect(
      await python.run(
        "import struct, fcntl\ns = socket.socket()\nout = attempt(fcntl.ioctl, s, 0x8914, struct.pack('16sh14x', b'lo', 0))\ns.close()",
      ),
      "take lo down",
    ).toBe("EPERM");
  });
});

describe("two instances", () => {
  it.each([
    ["Python", "booted"],
    ["Python", "thawed"],
  ] as const)("of one %s function do not see each other (%s)", async (_language, way) => {
    const a = probe("python", way);
    const b = probeOf(await start("python", way));
    try {
      await a.run("write('/tmp/of-a'); write('/dev/shm/of-a')");
      expect(await b.run("out = os.listdir('/tmp') + os.listdir('/dev/shm')")).toEqual([]);
      await a.run(
        "s = socket.socket(); s.bind(('127.0.0.1', 4711)); s.listen(); kept.append(s)\nu = socket.socket(socket.AF_UNIX); u.bind('\\0of-a'); u.listen(); kept.append(u)",
      );
      expect(await a.run("s = socket.create_connection(('127.0.0.1', 4711)); s.close(); out = 'reached'")).toBe("reached");
      expect(
        await b.run(
          "out = [attempt(lambda: socket.create_connection(('127.0.0.1', 4711))), attempt(lambda: socket.socket(socket.AF_UNIX).connect('\\0of-a'))]",
        ),
      ).toEqual(["ECONNREFUSED", "ECONNREFUSED"]);
      expect(await b.run("s = socket.socket(); s.bind(('127.0.0.1', 4711)); s.close(); out = 'free'")).toBe("free");
      // SysV and POSIX IPC: made here, missing there, and not the host's.
      expect(
        await a.run(
          "out = [type(call(29, 77, 4096, 0o1666)).__name__, type(call(68, 77, 0o1666)).__name__, type(call(64, 77, 1, 0o1666)).__name__, type(call(240, b'of-a', 0o102, 0o666, 0)).__name__]",
        ),
      ).toEqual(["int", "int", "int", "int"]);
      expect(
        await b.run(
          "out = [call(29, 77, 4096, 0o666), call(68, 77, 0o666), call(64, 77, 1, 0o666), call(240, b'of-a', 2, 0, 0)]",
        ),
      ).toEqual(["ENOENT", "ENOENT", "ENOENT", "ENOENT"]);
      expect(readFileSync("/proc/sysvipc/shm", "utf8")).not.toMatch(/^\s+77\s/m);
      const pid = await a.run("out = os.getpid()");
      expect(await b.run(`out = attempt(os.kill, ${pid}, 0) if ${pid} != os.getpid() else 'ESRCH'`)).toBe("ESRCH");
      expect(await b.run("out = len([p for p in os.listdir('/proc') if p.isdigit()])")).toBe(2);
    } finally {
      await b.instance.dispose();
      await a.run(
        "[s.close() for s in kept]; kept.clear(); os.unlink('/tmp/of-a'); os.unlink('/dev/shm/of-a')\nfor nr, op in ((31, 29), (71, 68)):\n    call(nr, call(op, 77, 0, 0), 0, 0)",
      );
    }
  });

  it("run as different users of the host, neither of which owns anything", async () => {
    const uids = [...probes.values()].map(({ instance }) =>
      Number(/^Uid:\t(\d+)/m.exec(readFileSync(`/proc/${hostPid(instance)}/status`, "utf8"))?.[1]),
    );
    expect(new Set(uids).size).toBe(uids.length);
    for (const uid of uids) expect(uid).toBeGreaterThanOrEqual(900_000);
  });
});

describe("the host", () => {
  it("notices nothing of all this", async () => {
    const look = (): unknown => ({
      name: hostname(),
      modules: existsSync("/proc/modules") && readFileSync("/proc/modules", "utf8").split("\n").length,
    });
    const before = look();
    const { instance, run } = probe("python", "booted");
    await run("[call(nr, 0, 0, 0, 0, 0) for nr in range(159, 180) if nr != 160]");
    for (let family = 0; family < 46; family++) await run(`out = attempt(lambda: socket.socket(${family}).close())`);
    expect(instance.alive).toBe(true);
    expect(look()).toEqual(before);
    expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(bench.root);
    for (const [name, { instance: one }] of probes) expect(one.alive, name).toBe(true);
  });
});

describe("an interpreter that lies where functions have a directory of their own", () => {
  it("is refused with where it lies", async () => {
    const dir = mkdtempSync("/tmp/thaw-test-interpreter-");
    const node = join(dir, "node");
    copyFileSync(process.execPath, node);
    const engine = await openEngine({ dataDir: join(dir, "data"), interpreters: [node] });
    try {
      const error = await refusal(engine.boot(bench.node("exports.handler = async () => 1;")));
      expect(error).toMatchObject({
        code: "RUNTIME_MISSING",
        why: `${node} lies in /tmp, and functions have a /tmp of their own`,
      });
    } finally {
      await engine.close();
      rmSync(dir, { recursive: true });
    }
  });
});
