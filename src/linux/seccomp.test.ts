import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ABSENT, REFUSED, seccompFilter, UNFIT } from "./seccomp.js";

const X86_64 = 0xc000003e;
const I386 = 0x40000003;
const AARCH64 = 0xc00000b7;
const X32 = 0x40000000;
const ALLOW = "allow";
const EPERM = 1;
const EINVAL = 22;
const ENOSYS = 38;
const EPROTONOSUPPORT = 93;
const EAFNOSUPPORT = 97;

/** Runs classic BPF as the kernel does for seccomp: absolute loads, jumps forward only, a return at the end of every path. */
function answer(nr: number, args: readonly bigint[] = [], arch = X86_64): typeof ALLOW | number {
  const data = Buffer.alloc(64);
  data.writeInt32LE(nr | 0, 0);
  data.writeUInt32LE(arch, 4);
  for (const [index, value] of args.entries()) data.writeBigUInt64LE(BigInt.asUintN(64, value), 16 + index * 8);
  const filter = seccompFilter();
  let accumulator = 0;
  for (let at = 0; at < filter.length / 8; at++) {
    const code = filter.readUInt16LE(at * 8);
    const k = filter.readUInt32LE(at * 8 + 4);
    const jump = (condition: boolean): number => filter.readUInt8(at * 8 + (condition ? 2 : 3));
    if (code === 0x20) accumulator = data.readUInt32LE(k);
    else if (code === 0x15) at += jump(accumulator === k);
    else if (code === 0x35) at += jump(accumulator >= k);
    else if (code === 0x45) at += jump((accumulator & k) !== 0);
    else if (code === 0x06 && k === 0x7fff0000) return ALLOW;
    else if (code === 0x06 && k >>> 16 === 5) return k & 0xffff;
    else throw new Error(`instruction ${at} (code ${code}, k ${k}) is none that the filter may use`);
  }
  throw new Error("the filter ran past its end");
}

const CLONE = 56;
const UNSHARE = 272;
const SETNS = 308;
const SOCKET = 41;
const [OPEN, FCNTL, OPENAT] = [2, 72, 257];
const special = [CLONE, UNSHARE, SETNS, SOCKET, OPEN, FCNTL, OPENAT, 16, 135];
const refusedNumbers = new Set([REFUSED, ABSENT, UNFIT].flatMap((calls) => Object.values(calls)));

describe("the seccomp filter", () => {
  it("fits the kernel's limit, and every jump lands inside it", () => {
    const count = seccompFilter().length / 8;
    expect(count).toBeLessThanOrEqual(4096);
    for (let at = 0; at < count; at++) {
      if ((seccompFilter().readUInt16LE(at * 8) & 7) !== 5) continue;
      expect(at + 1 + Math.max(seccompFilter().readUInt8(at * 8 + 2), seccompFilter().readUInt8(at * 8 + 3))).toBeLessThan(count);
    }
  });

  it("refuses these calls, and none of them leaves the list by itself", () => {
    expect(Object.entries(REFUSED).map(([name, nr]) => `${name} ${nr}`)).toEqual([
      ..."ptrace 101,syslog 103,vhangup 153,modify_ldt 154,pivot_root 155,adjtimex 159,chroot 161,acct 163,settimeofday 164,mount 165".split(
        ",",
      ),
      ..."umount2 166,swapon 167,swapoff 168,reboot 169,sethostname 170,setdomainname 171,iopl 172,ioperm 173,init_module 175".split(
        ",",
      ),
      ..."delete_module 176,quotactl 179,clock_settime 227,kexec_load 246,add_key 248,request_key 249,keyctl 250,move_pages 279".split(
        ",",
      ),
      ..."perf_event_open 298,fanotify_init 300,fanotify_mark 301,name_to_handle_at 303,open_by_handle_at 304,clock_adjtime 305".split(
        ",",
      ),
      ..."process_vm_readv 310,process_vm_writev 311,kcmp 312,finit_module 313,kexec_file_load 320,bpf 321,userfaultfd 323".split(
        ",",
      ),
      ..."open_tree 428,fsopen 430,fsconfig 431,fsmount 432,fspick 433,pidfd_getfd 438,process_madvise 440,mount_setattr 442".split(
        ",",
      ),
      "quotactl_fd 443",
    ]);
  });

  it.each(Object.entries(REFUSED))("answers %s with EPERM", (_name, nr) => expect(answer(nr)).toBe(EPERM));

  it.each(Object.entries(ABSENT))("answers %s as a kernel that does not have it", (_name, nr) => expect(answer(nr)).toBe(ENOSYS));

  it.each(Object.entries(UNFIT))("answers %s as where it cannot be done", (_name, nr) => expect(answer(nr)).toBe(EINVAL));

  it("lets every other call of this architecture through", () => {
    for (let nr = 0; nr < 1000; nr++) {
      if (!refusedNumbers.has(nr) && !special.includes(nr)) expect(answer(nr), `call ${nr}`).toBe(ALLOW);
    }
  });

  it("refuses every call of x32 and of other architectures, whatever its number and arguments", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 0x3fffffff }),
        fc.array(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), { maxLength: 6 }),
        (nr, args) => {
          expect(answer(nr | X32, args)).toBe(ENOSYS);
          expect(answer(nr, args, I386)).toBe(ENOSYS);
          expect(answer(nr, args, AARCH64)).toBe(ENOSYS);
        },
      ),
    );
    expect(answer(-1)).toBe(ENOSYS);
  });

  it.each([
    ["mount", 0x00020000n],
    ["cgroup", 0x02000000n],
    ["UTS", 0x04000000n],
    ["IPC", 0x08000000n],
    ["user", 0x10000000n],
    ["PID", 0x20000000n],
    ["network", 0x40000000n],
  ])("lets nobody clone, unshare or join a %s namespace, alone or among other flags", (_name, flag) => {
    for (const others of [0n, 17n, 0x3d0f00n, 0xffffffff_00000000n]) {
      expect(answer(CLONE, [flag | others])).toBe(EPERM);
      expect(answer(UNSHARE, [flag | others])).toBe(EPERM);
    }
    expect(answer(SETNS, [3n, flag])).toBe(EPERM);
  });

  it("lets processes and threads be made", () => {
    expect(answer(CLONE, [17n]), "fork").toBe(ALLOW);
    expect(answer(CLONE, [0x4111n]), "vfork").toBe(ALLOW);
    expect(answer(CLONE, [0x3d0f00n]), "pthread_create").toBe(ALLOW);
  });

  it("leaves the time namespace to the capabilities, which a function does not have, and no other", () => {
    expect(answer(UNSHARE, [0x80n])).toBe(ALLOW);
    expect(answer(SETNS, [3n, 0x80n])).toBe(ALLOW);
    expect(answer(UNSHARE, [0n])).toBe(EPERM);
    expect(answer(SETNS, [3n, 0n]), "any kind of namespace").toBe(EPERM);
    expect(answer(UNSHARE, [0x10000080n])).toBe(EPERM);
  });

  it("lets files be opened, but not read past the page cache", () => {
    for (const flags of [0n, 0o2000000n, 0o102n, 0o20200000n, 0o4000n]) {
      expect(answer(OPEN, [0n, flags])).toBe(ALLOW);
      expect(answer(OPENAT, [0n, 0n, flags])).toBe(ALLOW);
      expect(answer(FCNTL, [0n, 4n, flags])).toBe(ALLOW);
      expect(answer(OPEN, [0n, flags | 0o40000n])).toBe(EINVAL);
      expect(answer(OPENAT, [0n, 0n, flags | 0o40000n])).toBe(EINVAL);
      expect(answer(FCNTL, [0n, 4n, flags | 0o40000n])).toBe(EINVAL);
    }
    expect(answer(FCNTL, [0n, 1031n, 0o40000n]), "the size of a pipe is no flag").toBe(ALLOW);
  });

  it("lets a personality be asked and not changed, and a terminal be used and not fed", () => {
    expect(answer(135, [0xffffffffn])).toBe(ALLOW);
    expect(answer(135, [0x0040000n])).toBe(EPERM);
    expect(answer(16, [0n, 0x5412n])).toBe(EPERM);
    expect(answer(16, [0n, 0xffffffff_00005412n]), "the upper half of a command does not count").toBe(EPERM);
    expect(answer(16, [0n, 0x5401n])).toBe(ALLOW);
  });

  it("makes sockets of unix, TCP, UDP, ping and interface listing, and of nothing else", () => {
    const allowed = [
      [1, 0],
      [2, 0],
      [2, 6],
      [2, 17],
      [2, 1],
      [10, 0],
      [10, 6],
      [10, 17],
      [10, 58],
      [16, 0],
    ];
    for (const [family, protocol] of allowed)
      expect(answer(SOCKET, [BigInt(family ?? 0), 1n, BigInt(protocol ?? 0)])).toBe(ALLOW);
    for (let family = 0; family < 64; family++) {
      if (![1, 2, 10, 16].includes(family))
        expect(answer(SOCKET, [BigInt(family), 1n, 0n]), `family ${family}`).toBe(EAFNOSUPPORT);
    }
    for (let protocol = 1; protocol < 300; protocol++) {
      expect(answer(SOCKET, [16n, 3n, BigInt(protocol)]), `netlink ${protocol}`).toBe(EPROTONOSUPPORT);
      if (![1, 6, 17, 58].includes(protocol))
        expect(answer(SOCKET, [2n, 1n, BigInt(protocol)]), `protocol ${protocol}`).toBe(EPROTONOSUPPORT);
    }
  });
});
