import { it } from "vitest";
import { ask, useBench, withInstance } from "./support-sandbox.js";
const bench = useBench();
const PY = `
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def handler(event, context):
    env = {"os": os, "ctypes": ctypes, "libc": libc}
    exec(event["code"], env)
    return env.get("out")
`;
const code = `
out = {}
def r(p):
    try: return open(p, errors="replace").read()
    except Exception as e: return repr(e)
out["status"] = r("/proc/self/status")
out["mountinfo"] = r("/proc/self/mountinfo")
out["cmd1"] = r("/proc/1/cmdline")
out["status1"] = r("/proc/1/status")
out["env1"] = r("/proc/1/environ")
out["cgroup"] = r("/proc/self/cgroup")
out["tasks"] = {t: [l for l in r("/proc/self/task/%s/status" % t).split("\\n") if "Cap" in l or "Name" in l or "NoNew" in l or "Seccomp" in l] for t in os.listdir("/proc/self/task")}
out["pids"] = [p for p in os.listdir("/proc") if p.isdigit()]
out["fds"] = {f: os.readlink("/proc/self/fd/"+f) for f in os.listdir("/proc/self/fd") if os.path.islink("/proc/self/fd/"+f)}
out["env"] = dict(os.environ)
out["root"] = {d: sorted(os.listdir(d)) for d in ["/", "/etc", "/var", "/run", "/run/thaw", "/dev", "/root", "/tmp"]}
import socket
fam = {}
for f in range(0, 46):
    for t in (1,2,3,5):
        try:
            s = socket.socket(f, t); fam.setdefault(f, []).append("%d ok" % t); s.close()
        except OSError as e: fam.setdefault(f, []).append("%d %d" % (t, e.errno))
out["fam"] = {k: v for k, v in fam.items()}
nl = {}
for p in range(0, 23):
    try:
        s = socket.socket(16, 3, p); nl[p] = "ok"; s.close()
    except OSError as e: nl[p] = e.errno
out["nl"] = nl
n = 0
import errno
try:
    while n < 3000:
        fd = libc.inotify_init1(0)
        if fd < 0: out["inotify_errno"] = ctypes.get_errno(); break
        n += 1
except Exception as e: out["ie"] = repr(e)
out["inotify"] = n
`;
it("look", async () => {
  const image = await bench.image(bench.python(PY), { code: "out = 1" });
  await withInstance(bench.engine.thaw(image), async (i) => {
    const out = (await ask(i, { code })) as Record<string, unknown>;
    for (const [k, v] of Object.entries(out)) console.log(`== ${k}\n${typeof v === "string" ? v : JSON.stringify(v, null, 1)}`);
    const { execSync } = await import("node:child_process");
    console.log(execSync("cat /proc/sys/fs/inotify/max_user_instances; python3 -c 'import ctypes; print([ctypes.CDLL(None).inotify_init1(0) for _ in range(3)])'").toString());
  });
});
