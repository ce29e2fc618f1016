/** Numbers of the system calls that programs use, x86-64, and the flags that go with them. */
export const SYS = {
  read: 0,
  write: 1,
  close: 3,
  fstat: 5,
  lseek: 8,
  mmap: 9,
  mprotect: 10,
  rt_sigaction: 13,
  rt_sigprocmask: 14,
  pread64: 17,
  mremap: 25,
  madvise: 28,
  ioctl: 16,
  setitimer: 38,
  socket: 41,
  getpid: 39,
  sendto: 44,
  connect: 42,
  accept4: 288,
  bind: 49,
  listen: 50,
  getsockname: 51,
  shutdown: 48,
  socketpair: 53,
  setxattr: 188,
  setsockopt: 54,
  execve: 59,
  fcntl: 72,
  flock: 73,
  chdir: 80,
  mkdir: 83,
  rename: 82,
  link: 86,
  symlink: 88,
  chmod: 90,
  umask: 95,
  capset: 126,
  prctl: 157,
  futex: 202,
  sched_setaffinity: 203,
  sched_setattr: 314,
  openat: 257,
  utimensat: 280,
  timerfd_create: 283,
  timerfd_settime: 286,
  signalfd4: 289,
  eventfd2: 290,
  epoll_create1: 291,
  epoll_ctl: 233,
  epoll_wait: 232,
  dup3: 292,
  pipe2: 293,
  inotify_init1: 294,
  unshare: 272,
  setns: 308,
  seccomp: 317,
  getrandom: 318,
  membarrier: 324,
  memfd_create: 319,
  move_mount: 429,
  close_range: 436,
} as const;

export const PROT_READ = 1;
export const PROT_WRITE = 2;

export const MAP_SHARED = 1;
export const MAP_PRIVATE = 2;
export const MAP_FIXED = 0x10;
export const MAP_ANONYMOUS = 0x20;
export const MAP_GROWSDOWN = 0x100;
export const MAP_NORESERVE = 0x4000;

export const MADV_RANDOM = 1;
export const MADV_DONTNEED = 4;
export const MADV_WIPEONFORK = 18;
export const MADV_POPULATE_READ = 22;
export const MADV_POPULATE_WRITE = 23;
export const MADV_GUARD_INSTALL = 102;

export const O_RDWR = 2;
export const O_CREAT = 0o100;
export const O_EXCL = 0o200;
export const O_TRUNC = 0o1000;
/** Of the flags of a descriptor: whether it reads, writes, or both. */
export const O_ACCMODE = 0o3;
export const O_APPEND = 0o2000;
export const O_ASYNC = 0o20000;
export const O_NONBLOCK = 0o4000;
export const O_DIRECTORY = 0o200000;
export const O_CLOEXEC = 0o2000000;
export const O_TMPFILE = 0o20200000;
export const EFD_CLOEXEC = 0o2000000;
export const AT_FDCWD = -100;

export const F_SETFL = 4;
export const F_SETPIPE_SZ = 1031;
export const F_DUPFD_CLOEXEC = 1030;
