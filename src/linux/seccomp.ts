/**
 * The function's seccomp filter, as classic BPF. It is a second wall: what it refuses a process without capabilities in
 * its own namespaces mostly could not do anyway; it also keeps away kernel surface that functions have no use for. It answers
 * as Linux answers an unprivileged caller (EPERM), or as a kernel without the feature (ENOSYS, EINVAL), so that libraries take
 * their ordinary way around.
 *
 * It is installed when a husk is made, off the path of a request; the few privileged calls of later programs (move_mount, a time
 * namespace) are let through, because without capabilities they fail by themselves.
 */
import { assert } from "../base/errors.js";

const JUMP_MAX = 255;
const BPF_LOAD = 0x20;
const BPF_JEQ = 0x15;
const BPF_JGE = 0x35;
const BPF_JSET = 0x45;
const BPF_RETURN = 0x06;
const ALLOW = 0x7fff0000;
const ERRNO = 0x00050000;
const EPERM = 1;
const EINVAL = 22;
const ENOSYS = 38;
const EPROTONOSUPPORT = 93;
const EAFNOSUPPORT = 97;
const AUDIT_ARCH_X86_64 = 0xc000003e;
const X32_BIT = 0x40000000;
const AT_NR = 0;
const AT_ARCH = 4;
const AT_ARG0 = 16;
const AT_ARG1 = 24;
const AT_ARG2 = 32;

const CLONE_NAMESPACES = 0x7e020000;
const CLONE_NEWTIME = 0x80;
const TIOCSTI = 0x5412;
const O_DIRECT = 0o40000;
const F_SETFL = 4;
const PERSONALITY_QUERY = 0xffffffff;
const AF_UNIX = 1;
const AF_INET = 2;
const AF_INET6 = 10;
const AF_NETLINK = 16;
const IPPROTO_ICMP = 1;
const IPPROTO_TCP = 6;
const IPPROTO_UDP = 17;
const IPPROTO_ICMPV6 = 58;

const OPEN = 2;
const CLONE = 56;
const IOCTL = 16;
const FCNTL = 72;
const SOCKET = 41;
const PERSONALITY = 135;
const UNSHARE = 272;
const OPENAT = 257;
const SETNS = 308;

/** Refused with EPERM, by name and number. */
export const REFUSED: Readonly<Record<string, number>> = {
  ptrace: 101,
  syslog: 103,
  vhangup: 153,
  modify_ldt: 154,
  pivot_root: 155,
  adjtimex: 159,
  chroot: 161,
  acct: 163,
  settimeofday: 164,
  mount: 165,
  umount2: 166,
  swapon: 167,
  swapoff: 168,
  reboot: 169,
  sethostname: 170,
  setdomainname: 171,
  iopl: 172,
  ioperm: 173,
  init_module: 175,
  delete_module: 176,
  quotactl: 179,
  clock_settime: 227,
  kexec_load: 246,
  add_key: 248,
  request_key: 249,
  keyctl: 250,
  move_pages: 279,
  perf_event_open: 298,
  fanotify_init: 300,
  fanotify_mark: 301,
  name_to_handle_at: 303,
  open_by_handle_at: 304,
  clock_adjtime: 305,
  process_vm_readv: 310,
  process_vm_writev: 311,
  kcmp: 312,
  finit_module: 313,
  kexec_file_load: 320,
  bpf: 321,
  userfaultfd: 323,
  open_tree: 428,
  fsopen: 430,
  fsconfig: 431,
  fsmount: 432,
  fspick: 433,
  pidfd_getfd: 438,
  process_madvise: 440,
  mount_setattr: 442,
  quotactl_fd: 443,
};

/**
 * Answered as by a kernel that does not have them. clone3 and openat2 hide their flags from a filter; io_uring cannot be frozen; protection
 * keys belong to a process's memory, so a clone has none of those that V8 took for WebAssembly, and its next module would end it. What
 * a process may do by Landlock nobody can read, and a clone could do more.
 */
export const ABSENT: Readonly<Record<string, number>> = {
  pkey_alloc: 330,
  io_uring_setup: 425,
  io_uring_enter: 426,
  io_uring_register: 427,
  clone3: 435,
  openat2: 437,
  landlock_create_ruleset: 444,
  landlock_add_rule: 445,
  landlock_restrict_self: 446,
  memfd_secret: 447,
};

/**
 * Answered as where the kernel cannot do it for these files, so that libraries read and write. A pipe is locked while it is filled: by one of these, from
 * a socket that says nothing, for ever, and whoever reads the pipe, be it with O_NONBLOCK, sleeps until then and cannot even be killed. The keeper reads
 * what functions print.
 */
export const UNFIT: Readonly<Record<string, number>> = {
  sendfile: 40,
  splice: 275,
  tee: 276,
  vmsplice: 278,
};

type Instruction = readonly [code: number, ifTrue: number, ifFalse: number, k: number];

const refuse = (errno: number): Instruction => [BPF_RETURN, 0, 0, ERRNO | errno];
const allow: Instruction = [BPF_RETURN, 0, 0, ALLOW];

/**
 * Sockets: unix, TCP, UDP, ping, and the netlink family that lists interfaces. Of the others some reach past the network namespace (vsock
 * talks to the hypervisor and, over its own loopback, to other sandboxes; netlink carries the host's device events), and asking for any
 * makes the host load a kernel module. They answer as a kernel without them.
 */
const SOCKETS: readonly Instruction[] = [
  [BPF_LOAD, 0, 0, AT_ARG0],
  [BPF_JEQ, 13, 0, AF_UNIX],
  [BPF_JEQ, 5, 0, AF_INET],
  [BPF_JEQ, 4, 0, AF_INET6],
  [BPF_JEQ, 1, 0, AF_NETLINK],
  refuse(EAFNOSUPPORT),
  // NETLINK_ROUTE is protocol 0, as is the default of the others.
  [BPF_LOAD, 0, 0, AT_ARG2],
  [BPF_JEQ, 7, 6, 0],
  [BPF_LOAD, 0, 0, AT_ARG2],
  [BPF_JEQ, 5, 0, 0],
  [BPF_JEQ, 4, 0, IPPROTO_TCP],
  [BPF_JEQ, 3, 0, IPPROTO_UDP],
  [BPF_JEQ, 2, 0, IPPROTO_ICMP],
  [BPF_JEQ, 1, 0, IPPROTO_ICMPV6],
  refuse(EPROTONOSUPPORT),
  allow,
];

type Verdict = readonly Instruction[];

const looksAt = (argument: number, test: Instruction, error = EPERM): Verdict => [
  [BPF_LOAD, 0, 0, argument],
  test,
  refuse(error),
  allow,
];

/**
 * No reads past the page cache: a device writes into memory whose pages it took hold of before, and the kernel does not count that as
 * written. Such a page would be missed by whoever copies memory while the process runs, and a freeze or a hibernation would lose what
 * was read. Answered as by a file system that cannot.
 */
const directly = (argument: number): Verdict => looksAt(argument, [BPF_JSET, 0, 1, O_DIRECT], EINVAL);

/** Each of these looks at one argument (its low half) and returns; sockets and fcntl at two. */
const BY_ARGUMENT: readonly (readonly [nr: number, verdict: Verdict])[] = [
  [CLONE, looksAt(AT_ARG0, [BPF_JSET, 0, 1, CLONE_NAMESPACES])],
  [UNSHARE, looksAt(AT_ARG0, [BPF_JEQ, 1, 0, CLONE_NEWTIME])],
  [SETNS, looksAt(AT_ARG1, [BPF_JEQ, 1, 0, CLONE_NEWTIME])],
  [PERSONALITY, looksAt(AT_ARG0, [BPF_JEQ, 1, 0, PERSONALITY_QUERY])],
  [IOCTL, looksAt(AT_ARG1, [BPF_JEQ, 0, 1, TIOCSTI])],
  [SOCKET, SOCKETS],
  [OPEN, directly(AT_ARG1)],
  [OPENAT, directly(AT_ARG2)],
  [FCNTL, [[BPF_LOAD, 0, 0, AT_ARG1], [BPF_JEQ, 0, 3, F_SETFL], ...directly(AT_ARG2)]],
];

/** From `first` to the one before the next stretch, all have the same verdict. */
interface Stretch {
  readonly first: number;
  readonly verdict: Verdict;
}

const ALLOWED: Verdict = [allow];

function stretches(): readonly Stretch[] {
  const [refused, absent, unfit]: Verdict[] = [[refuse(EPERM)], [refuse(ENOSYS)], [refuse(EINVAL)]];
  const verdicts = new Map<number, Verdict>(BY_ARGUMENT);
  for (const nr of Object.values(REFUSED)) verdicts.set(nr, refused ?? ALLOWED);
  for (const nr of Object.values(ABSENT)) verdicts.set(nr, absent ?? ALLOWED);
  for (const nr of Object.values(UNFIT)) verdicts.set(nr, unfit ?? ALLOWED);
  const list: Stretch[] = [{ first: 0, verdict: ALLOWED }];
  const add = (first: number, verdict: Verdict): void => {
    if (list.at(-1)?.verdict !== verdict) list.push({ first, verdict });
  };
  for (const nr of [...verdicts.keys()].sort((a, b) => a - b)) {
    add(nr, verdicts.get(nr) ?? ALLOWED);
    if (!verdicts.has(nr + 1)) add(nr + 1, ALLOWED);
  }
  return list;
}

/**
 * A search by halves over call numbers: eight comparisons where one after another took seventy. The kernel runs a new filter once
 * for each call there is, to learn which are allowed whatever their arguments, so this counts in every husk that is made.
 */
function decide(among: readonly Stretch[]): readonly Instruction[] {
  const half = among.length >> 1;
  const middle = among[half];
  assert(middle !== undefined, "no call has a verdict");
  if (half === 0) return middle.verdict;
  const [below, above] = [decide(among.slice(0, half)), decide(among.slice(half))];
  assert(below.length <= JUMP_MAX, "a jump of the filter is too long");
  return [[BPF_JGE, below.length, 0, middle.first], ...below, ...above];
}

/** The filter as an array of `struct sock_filter` (8 bytes each). */
export function seccompFilter(): Buffer {
  const code: Instruction[] = [
    [BPF_LOAD, 0, 0, AT_ARCH],
    [BPF_JEQ, 1, 0, AUDIT_ARCH_X86_64],
    refuse(ENOSYS),
    [BPF_LOAD, 0, 0, AT_NR],
    [BPF_JGE, 0, 1, X32_BIT],
    refuse(ENOSYS),
  ];
  code.push(...decide(stretches()));
  const bytes = Buffer.alloc(code.length * 8);
  for (const [index, [operation, ifTrue, ifFalse, k]] of code.entries()) {
    bytes.writeUInt16LE(operation, index * 8);
    bytes.writeUInt8(ifTrue, index * 8 + 2);
    bytes.writeUInt8(ifFalse, index * 8 + 3);
    bytes.writeUInt32LE(k >>> 0, index * 8 + 4);
  }
  return bytes;
}
