import { it } from "vitest";
import { ask, useBench, withInstance } from "./support-sandbox.js";
const bench = useBench();
const SRC = `
import ctypes, os, threading, time, signal, mmap, socket
libc = ctypes.CDLL(None, use_errno=True)
kept = []
def handler(event, context):
    scope = dict(globals(), out=None)
    exec(event["code"], scope)
    return scope["out"]
`;
const cases: [string, string, string][] = [
  ["vfork in a thread", `
libc.syscall.restype = ctypes.c_long
code = b"\\x48\\xc7\\xc0\\x3a\\x00\\x00\\x00\\x0f\\x05\\x48\\x85\\xc0\\x75\\x02\\xeb\\xfe\\xc3"  # vfork; child spins
buf = mmap.mmap(-1, 4096, prot=7, flags=mmap.MAP_PRIVATE|mmap.MAP_ANONYMOUS); buf.write(code)
addr = ctypes.addressof(ctypes.c_char.from_buffer(buf)); kept.append(buf)
fn = ctypes.CFUNCTYPE(ctypes.c_long)(addr)
threading.Thread(target=fn, daemon=True).start()
time.sleep(0.3)
out = 1`, "out = 2"],
  ["stopped", "threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGSTOP)).start(); out = 1", "out = 2"],
  ["names in other scripts", "open('/tmp/ä-日本-\\udcff', 'w').write('x'); os.makedirs('/tmp/ü/ö'); os.symlink('ä-日本-\\udcff', '/tmp/ß'); os.chdir('/tmp/ü'); out = 1", "out = [[os.fsencode(n).hex() for n in sorted(os.listdir('/tmp'))], open('/tmp/ß').read(), os.fsencode(os.getcwd()).hex()]"],
  ["private mapping of a file in /tmp", "open('/tmp/m','w').write('x'*8192); f=open('/tmp/m','r+b'); kept.append(mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE)); f.close(); out = 1", "out = kept[0][:3].decode()"],
  ["sparse file in /tmp", "f=open('/tmp/s','w'); f.truncate(1<<40); f.close(); out = 1", "out = 2"],
  ["fifo in /tmp", "os.mkfifo('/tmp/fifo'); out = 1", "out = 2"],
  ["socket in /tmp", "s=socket.socket(socket.AF_UNIX); s.bind('/tmp/sock'); s.close(); out = 1", "out = 2"],
  ["many files", "[open('/tmp/f%d'%i,'w').close() for i in range(5000)]; out = 1", "out = 2"],
  ["deep", "p='/tmp'\nfor i in range(60):\n    p+='/d'; os.mkdir(p)\nout = 1", "out = 2"],
  ["modes", "open('/tmp/a','w').write('x'); os.chmod('/tmp/a', 0o000); os.mkdir('/tmp/d'); open('/tmp/d/x','w').write('y'); os.chmod('/tmp/d', 0o500); open('/tmp/suid','w').write('z'); os.chmod('/tmp/suid', 0o4755); out = 1", "out = [oct(os.stat('/tmp/'+n).st_mode) for n in ('a','d','suid')] + [open('/tmp/d/x').read()]"],
  ["many mappings", "kept.extend(mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE|mmap.MAP_ANONYMOUS, prot=(1 if i%2 else 3)) for i in range(30000)); out = 1", "out = len(kept)"],
  ["extra seccomp filter", "prog=ctypes.create_string_buffer(b'\\x06\\0\\0\\0\\0\\0\\xff\\x7f'); h=ctypes.create_string_buffer((1).to_bytes(8,'little')+ctypes.addressof(prog).to_bytes(8,'little')); out = libc.syscall(317,1,0,h)", "out = [l for l in open('/proc/self/status') if 'Seccomp' in l]"],
  ["huge reservation", "libc.mmap.restype=ctypes.c_long; a=libc.mmap(ctypes.c_void_p(0), ctypes.c_size_t(1<<44), 3, 0x4022, -1, ctypes.c_long(0)); out = a; ctypes.memset(a, 65, 3); kept.append(a)", "out = ctypes.string_at(kept[0], 4).decode('latin1')"],
];
for (const [name, before, after] of cases) it(name, async () => {
  const i = await bench.engine.boot(bench.python(SRC, { memoryMb: 1024, timeoutMs: 10000 }));
  const log = (...a: unknown[]) => console.log(`## ${name}:`, ...a);
  try {
    log("before", await ask(i, { code: before }));
    const t = performance.now();
    if (name.startsWith('stopped')) await new Promise((r) => setTimeout(r, 1000)); const image = await Promise.race([i.freeze(), new Promise<never>((_, r) => setTimeout(() => r(new Error("HANG: freeze took 10 s")), 10000))]);
    log("frozen in", performance.now() - t, image.report.notes);
    log("original", await ask(i, { code: after }));
    await withInstance(bench.engine.thaw(image), async (c) => log("clone", await ask(c, { code: after })));
  } catch (e) { log("ERROR", String(e).slice(0, 400)); try { log("after error", JSON.stringify(await ask(i, { code: "out = 9" }))); } catch (f) { log("original gone", String(f).slice(0, 300)); } }
  await i.dispose();
}, 40000);
