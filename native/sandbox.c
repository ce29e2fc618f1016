/*
 * Sandboxes: the root file system of a runtime, and the way from a clone to a husk.
 *
 * A template is a mount namespace whose root is a read-only tmpfs with what one interpreter needs bound
 * into it. It is built once; each sandbox is a copy. Bind sources are looked up on the host, targets inside the new
 * root (RESOLVE_IN_ROOT), so that no link in either can lead out of it.
 *
 * What runs when, and what it takes away:
 *   1. init (cloned by the builder into new PID, mount, IPC and UTS namespaces and the slot's network namespace; host
 *      root): joins its cgroups, leaves the keeper's cgroup namespace, closes the keeper's descriptors, mounts /proc,
 *      /tmp, /dev/shm.
 *   2. husk process (cloned by init into its own user namespace and a copy of the mount namespace): becomes uid and gid
 *      1000 (no other id exists there), in a session of its own, with capabilities over its user and mount namespace only.
 *      They are ambient, so that they survive the exec of the husk; the husk's programs need them (mounts,
 *      clock offset, PR_SET_MM) and drop them before the function runs.
 *   3. init drops every capability and waits, for the husk to end or to ask for the number of its next thread. It is PID 1: when it
 *      ends, or the keeper does, the kernel kills everything in the sandbox.
 */
#include "keeper.h"

#include <linux/capability.h>
#include <linux/securebits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { INNER_ID = 1000, STATUS_FD = HUSK_TOLD_FD + 1, KEEPER_FD, NULL_FD, GATE_READ_FD, GATE_WRITE_FD, LAST_FD = GATE_WRITE_FD };

static int explain(char *text, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int explain(char *text, int error, const char *format, ...) {
	va_list arguments;
	va_start(arguments, format);
	int count = vsnprintf(text, TEXT_BYTES, format, arguments);
	va_end(arguments);
	if (count >= 0 && count < TEXT_BYTES) snprintf(text + count, (size_t)(TEXT_BYTES - count), ": %s", strerror(error));
	return -error;
}

/* ---- templates ---- */

static int open_inside(int root, const char *path, int flags) {
	struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC), .resolve = RESOLVE_IN_ROOT};
	return sys_openat2(root, path, &how);
}

/* Opens the directory that holds the last part of `path`, making what is missing on the way with mode 0755. */
static int open_parent(int root, const char *path, const char **last) {
	int dir = open_inside(root, "/", O_PATH | O_DIRECTORY);
	char upto[4096];
	const char *at = path;
	for (;;) {
		while (*at == '/') at++;
		const char *end = strchrnul(at, '/');
		*last = at;
		if (*end == '\0' || dir < 0) return dir;
		size_t length = (size_t)(end - path);
		if (length >= sizeof upto) {
			close(dir);
			errno = ENAMETOOLONG;
			return -1;
		}
		memcpy(upto, path, length);
		upto[length] = '\0';
		int next = open_inside(root, upto, O_PATH | O_DIRECTORY);
		if (next < 0 && errno == ENOENT) {
			if (mkdirat(dir, upto + (at - path), 0755) == 0) next = open_inside(root, upto, O_PATH | O_DIRECTORY);
		}
		close(dir);
		dir = next;
		at = end;
	}
}

static int make_dir(int root, const char *path, mode_t mode) {
	const char *last;
	int parent = open_parent(root, path, &last);
	if (parent < 0) return -1;
	int result = mkdirat(parent, last, mode);
	if (result == 0 || errno == EEXIST) result = fchmodat(parent, last, mode, 0);
	close(parent);
	return result;
}

static int make_file(int root, const char *path, mode_t mode, const char *content) {
	const char *last;
	int parent = open_parent(root, path, &last);
	if (parent < 0) return -1;
	int file = openat(parent, last, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, mode);
	close(parent);
	if (file < 0) return -1;
	size_t count = strlen(content);
	int result = count == 0 || write(file, content, count) == (ssize_t)count ? 0 : -1;
	if (result == 0 && fchmod(file, mode) != 0) result = -1;
	close(file);
	return result;
}

/* Copied rather than bound: every mount is copied into each sandbox twice, and torn down twice. */
static int do_copy(int root, const char *source, const char *target, mode_t mode) {
	int from = open(source, O_RDONLY | O_CLOEXEC);
	if (from < 0) return -1;
	int result = make_file(root, target, mode, "");
	int to = result == 0 ? open_inside(root, target, O_WRONLY | O_TRUNC) : -1;
	if (to < 0) result = -1;
	ssize_t count = 1;
	while (result == 0 && count > 0) {
		count = sendfile(to, from, NULL, 1 << 20);
		if (count < 0) result = -1;
	}
	int error = errno;
	if (to >= 0) close(to);
	close(from);
	errno = error;
	return result;
}

/* The same device as the host's `source`. */
static int do_device(int root, const char *path, const char *source) {
	struct stat info;
	if (stat(source, &info) != 0) return -1;
	const char *last;
	int parent = open_parent(root, path, &last);
	if (parent < 0) return -1;
	int result = mknodat(parent, last, S_IFCHR | 0666, info.st_rdev);
	close(parent);
	return result;
}

static int attach(int tree, int root, const char *target) {
	int place = open_inside(root, target, O_PATH);
	if (place < 0) return -1;
	int result = (int)syscall(SYS_move_mount, tree, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	close(place);
	return result;
}

static int do_bind(int root, const char *source, const char *target) {
	int tree = sys_open_tree(AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (tree < 0) return -1;
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
	struct stat info;
	int result = sys_mount_setattr(tree, AT_EMPTY_PATH, &attr);
	if (result == 0) result = fstat(tree, &info);
	if (result == 0) {
		int there = open_inside(root, target, O_PATH);
		if (there >= 0) close(there);
		else result = S_ISDIR(info.st_mode) ? make_dir(root, target, 0755) : make_file(root, target, 0644, "");
	}
	if (result == 0) result = attach(tree, root, target);
	int error = errno;
	close(tree);
	errno = error;
	return result;
}

static int do_link(int root, const char *path, const char *target) {
	const char *last;
	int parent = open_parent(root, path, &last);
	if (parent < 0) return -1;
	int result = symlinkat(target, parent, last);
	close(parent);
	return result;
}

static int run_operation(int root, const char *const part[4]) {
	if (strcmp(part[0], "dir") == 0) return make_dir(root, part[1], (mode_t)strtoul(part[2], NULL, 8));
	if (strcmp(part[0], "bind") == 0) return do_bind(root, part[1], part[2]);
	if (strcmp(part[0], "file") == 0) return make_file(root, part[1], (mode_t)strtoul(part[2], NULL, 8), part[3]);
	if (strcmp(part[0], "copy") == 0) return do_copy(root, part[1], part[2], (mode_t)strtoul(part[3], NULL, 8));
	if (strcmp(part[0], "device") == 0) return do_device(root, part[1], part[2]);
	if (strcmp(part[0], "link") == 0) return do_link(root, part[1], part[2]);
	errno = EINVAL;
	return -1;
}

static int run_plan(int root, const char *plan, size_t count, char *text) {
	const char *at = plan, *end = plan + count;
	while (at < end) {
		const char *part[4];
		for (int index = 0; index < 4; index++) {
			part[index] = at;
			const char *stop = memchr(at, '\0', (size_t)(end - at));
			if (stop == NULL) return explain(text, EINVAL, "the root file system plan is cut short");
			at = stop + 1;
		}
		if (run_operation(root, part) != 0) {
			return explain(text, errno, "root file system: %s %s %s %.32s", part[0], part[1], part[2], part[3]);
		}
	}
	return 0;
}

/* In a fresh mount namespace. The new root is mounted over /proc: the only place that no bind source lies in. */
static int build_root(int namespaces, const char *plan, size_t count, char *text) {
	if (mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) return explain(text, errno, "cannot make mounts private");
	if (mount("thaw", "/proc", "tmpfs", MS_NOSUID, "mode=0755,size=64m") != 0) return explain(text, errno, "cannot mount a tmpfs");
	int root = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0) return explain(text, errno, "cannot open the new root");
	int result = run_plan(root, plan, count, text);
	/* With devices, but read-only: they are those of the plan. */
	struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID};
	if (result == 0 && fchdir(root) != 0) result = explain(text, errno, "cannot enter the new root");
	if (result == 0 && syscall(SYS_pivot_root, ".", ".") != 0) result = explain(text, errno, "pivot_root (is the host's root a shared mount of an initramfs?)");
	if (result == 0 && umount2(".", MNT_DETACH) != 0) result = explain(text, errno, "cannot let go of the host's root");
	if (result == 0 && sys_mount_setattr(root, AT_EMPTY_PATH, &read_only) != 0) result = explain(text, errno, "cannot make the new root read-only");
	close(root);
	if (result != 0) return result;
	int namespace = openat(namespaces, "mnt", O_RDONLY | O_CLOEXEC);
	return namespace >= 0 ? namespace : explain(text, errno, "cannot open the mount namespace");
}

int template_make(const char *plan, size_t count, int host_mount_ns, char *text) {
	int namespaces = open("/proc/self/ns", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (namespaces < 0) return explain(text, errno, "cannot open /proc/self/ns; is /proc mounted?");
	mode_t old_mask = umask(0);
	int result;
	if (unshare(CLONE_NEWNS) != 0) result = explain(text, errno, "cannot make a mount namespace; is the server root?");
	else result = build_root(namespaces, plan, count, text);
	umask(old_mask);
	if (setns(host_mount_ns, CLONE_NEWNS) != 0) die("cannot return to the host's mount namespace");
	close(namespaces);
	return result;
}

/* ---- init ---- */

static char *command_line;
static size_t command_line_bytes;

void init_names(int argc, char **argv) {
	if (argc < 1) return;
	command_line = argv[0];
	command_line_bytes = (size_t)(argv[argc - 1] + strlen(argv[argc - 1]) - argv[0]);
}

/* /proc/1/cmdline is for everyone to read, and is this memory: it would name the keeper by its path on the host. */
static void forget_command_line(void) {
	if (command_line == NULL) return;
	memset(command_line, 0, command_line_bytes);
	strncpy(command_line, "init", command_line_bytes);
}

static _Noreturn void init_failed(int error, const char *what) {
	struct init_status status = {.kind = INIT_FAILED, .error = error};
	explain(status.text, error, "%s", what);
	(void)!send(STATUS_FD, &status, sizeof status, MSG_NOSIGNAL);
	_exit(1);
}

static void check(long result, const char *what) {
	if (result < 0) init_failed(errno, what);
}

static void write_proc(const char *path, const char *text) {
	int file = open(path, O_WRONLY | O_CLOEXEC);
	check(file, path);
	check(write(file, text, strlen(text)), path);
	close(file);
}

static void write_map(pid_t pid, const char *file, uint32_t outside) {
	char path[64], line[64];
	snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
	snprintf(line, sizeof line, "%d %u 1\n", INNER_ID, outside);
	write_proc(path, line);
}

static struct __user_cap_header_struct cap_head = {.version = _LINUX_CAPABILITY_VERSION_3};

/* Of the husk process: over its own namespaces, and past the exec. */
static void keep_capabilities(void) {
	struct __user_cap_data_struct data[2] = {0};
	check(syscall(SYS_capget, &cap_head, data), "capget");
	data[0].inheritable = data[0].permitted;
	data[1].inheritable = data[1].permitted;
	check(syscall(SYS_capset, &cap_head, data), "capset");
	for (int capability = 0; capability < 64; capability++) {
		if (data[capability / 32].permitted & (1u << (capability % 32))) check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0), "raise an ambient capability");
	}
}

/* The husk process, from its clone to the exec. */
static _Noreturn void husk_process(void) {
	char go;
	close(GATE_WRITE_FD);
	if (read(GATE_READ_FD, &go, 1) != 1) _exit(1);
	check(setresgid(INNER_ID, INNER_ID, INNER_ID), "setresgid");
	check(setresuid(INNER_ID, INNER_ID, INNER_ID), "setresuid");
	check(prctl(PR_SET_PDEATHSIG, SIGKILL), "PR_SET_PDEATHSIG");
	keep_capabilities();
	check(setsid(), "setsid");
	check(personality(ADDR_NO_RANDOMIZE), "personality");
	/* With none at all the kernel would still start a handler that core_pattern pipes to; with one byte it writes no file and starts none (core(5)). */
	struct rlimit no_core = {1, 1};
	check(setrlimit(RLIMIT_CORE, &no_core), "setrlimit");
	for (int fd = 0; fd <= 2; fd++) check(dup2(NULL_FD, fd), "dup2");
	/* Kept until the exec so that a failure can be told; the channel and the event counters alone are inherited. */
	check(fcntl(STATUS_FD, F_SETFD, FD_CLOEXEC), "fcntl");
	sys_close_range(KEEPER_FD, LAST_FD);
	char *const argv[] = {"husk", NULL}, *const envp[] = {NULL};
	execve("/run/thaw/husk", argv, envp);
	init_failed(errno, "cannot execute the husk; does the template bind it at /run/thaw/husk?");
}

/*
 * Whoever makes a user namespace owns it, and what is counted in it by user (inotify instances, pending signals, locked memory) counts
 * against the owner's limits too: were that root, a function could use up the host's. So the owner is the function's own user.
 * A change of uid clears PR_SET_PDEATHSIG; that of the effective one alone keeps the capabilities with this bit.
 */
static void act_as(uid_t uid) {
	check(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "PR_SET_SECUREBITS");
	check(setresuid((uid_t)-1, uid, (uid_t)-1), "setresuid");
	check(prctl(PR_SET_PDEATHSIG, SIGKILL), "PR_SET_PDEATHSIG");
}

/*
 * The husk process shares init's memory until its exec, on this stack: a copy would cost 0.1 ms, to make it and to throw it away. Neither
 * changes what the other reads. (Both report a failure by errno, which they share: a wrong word for a sandbox that is lost anyway.)
 */
static char husk_stack[16384] __attribute__((aligned(16)));

/* clone3(2) for a child with a stack of its own, which no function can return to. */
static long clone_into(const struct clone_args *args, void (*entry)(void)) {
	long result;
	register void (*kept)(void) __asm__("rbx") = entry;
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "call *%%rbx\n\t"
			 "hlt\n"
			 "1:"
			 : "=a"(result)
			 : "a"((long)SYS_clone3), "D"(args), "S"(sizeof *args), "r"(kept)
			 : "rcx", "r11", "memory");
	return result;
}

static pid_t clone_husk(const struct husk_make *make) {
	pid_t wanted = (pid_t)make->pid;
	struct clone_args args = {
		.flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_VM,
		.exit_signal = SIGCHLD,
		.stack = (uint64_t)(uintptr_t)husk_stack,
		.stack_size = sizeof husk_stack,
	};
	if (wanted != 0) {
		args.set_tid = (uint64_t)(uintptr_t)&wanted;
		args.set_tid_size = 1;
	}
	act_as(make->uid);
	long pid = clone_into(&args, husk_process);
	if (pid < 0) errno = (int)-pid;
	check(pid < 0 ? -1 : 0, "cannot clone the husk process; is its pid below 2 or above pid_max, or are user namespaces off?");
	act_as(0);
	return (pid_t)pid;
}

static void tell_ready(pid_t husk) {
	struct init_status status = {.kind = INIT_READY};
	struct iovec part = {&status, offsetof(struct init_status, text)};
	union { struct cmsghdr align; char room[CMSG_SPACE(sizeof(struct ucred))]; } control = {0};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	*head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(struct ucred)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_CREDENTIALS};
	struct ucred credentials = {.pid = husk};
	memcpy(CMSG_DATA(head), &credentials, sizeof credentials);
	check(sendmsg(STATUS_FD, &message, MSG_NOSIGNAL), "cannot tell the keeper that the husk is ready");
}

/* No capability is in force but while the number of a thread is set. One for that stays at hand: the smaller one, if root has it. */
static bool may_set_numbers(bool now) {
	struct __user_cap_data_struct had[2] = {0}, data[2] = {0};
	if (syscall(SYS_capget, &cap_head, had) != 0) return false;
	data[1].permitted = had[1].permitted & 1u << (CAP_CHECKPOINT_RESTORE % 32);
	if (data[1].permitted == 0) data[0].permitted = had[0].permitted & 1u << CAP_SYS_ADMIN;
	for (int half = 0; half < 2; half++) data[half].effective = now ? data[half].permitted : 0;
	return syscall(SYS_capset, &cap_head, data) == 0;
}

/* Numbers are given in order: the next one is that behind the last. 0, or an error number. */
static int set_number(uint64_t number) {
	char text[24];
	int length = snprintf(text, sizeof text, "%lu", (unsigned long)number - 1);
	if (!may_set_numbers(true)) return errno;
	int file = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
	int error = file < 0 || write(file, text, (size_t)length) != length ? errno : 0;
	if (file >= 0) close(file);
	return may_set_numbers(false) ? error : errno;
}

static void answer_husk(void) {
	uint64_t number;
	if (read(HUSK_ASK_FD, &number, sizeof number) != sizeof number) return;
	uint64_t told = HUSK_NUMBER_SET + (uint64_t)set_number(number);
	(void)!write(HUSK_TOLD_FD, &told, sizeof told);
}

static void reap(pid_t husk) {
	struct init_status status = {.kind = INIT_ENDED};
	for (;;) {
		int wait_status;
		pid_t pid = wait4(-1, &wait_status, __WALL | WNOHANG, NULL);
		if (pid < 0 && errno != EINTR) _exit(1);
		if (pid == 0) return;
		if (pid != husk) continue;
		status.wait_status = (uint32_t)wait_status;
		(void)!send(STATUS_FD, &status, offsetof(struct init_status, text), MSG_NOSIGNAL);
		_exit(0);
	}
}

static void on_child(int signal) { (void)signal; }

/* Nobody writes to the counter once the husk is the function. */
static _Noreturn void serve(pid_t husk) {
	struct pollfd asks = {.fd = HUSK_ASK_FD, .events = POLLIN};
	sigset_t none;
	sigemptyset(&none);
	for (;;) {
		reap(husk);
		if (ppoll(&asks, 1, NULL, &none) > 0) answer_husk();
	}
}

static void join_cgroups(const struct init_plan *plan) {
	/* A thread that moves itself needs no lock on the whole machine's forks; moving another process does. */
	for (unsigned index = 0; plan->groups->on && !plan->groups->unified && index < plan->groups->count; index++) {
		const char *name = plan->groups->controllers[index].name;
		int result = cgroup_write(plan->groups, name, plan->slot, "tasks", "0");
		if (result < 0) init_failed(-result, "cannot join a cgroup");
	}
	check(unshare(CLONE_NEWCGROUP), "cannot make a cgroup namespace");
}

static void mount_own(uint32_t tmp_mb) {
	char options[64];
	snprintf(options, sizeof options, "mode=1777,size=%um", tmp_mb == 0 ? 1 : tmp_mb);
	check(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "cannot mount /proc");
	check(mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options), "cannot mount /tmp");
	check(mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=64m"), "cannot mount /dev/shm");
}

_Noreturn void init_run(const struct init_plan *plan) {
	/* The builder keeps its own descriptors below HUSK_CHANNEL_FD. */
	if (dup2(plan->status, STATUS_FD) < 0 || dup2(plan->channel, HUSK_CHANNEL_FD) < 0 || dup2(plan->keeper_pidfd, KEEPER_FD) < 0) _exit(1);
	check(prctl(PR_SET_PDEATHSIG, SIGKILL), "PR_SET_PDEATHSIG");
	check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
	signal(SIGPIPE, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	join_cgroups(plan);
	sys_close_range(3, HUSK_CHANNEL_FD - 1);
	sys_close_range(KEEPER_FD + 1, ~0u);
	mount_own(plan->make.tmp_mb);
	forget_command_line();
	/* When memory runs out on the whole machine, functions go before the server. */
	write_proc("/proc/self/oom_score_adj", "1000");
	check(sethostname("thaw", 4), "sethostname");
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), gate[2];
	check(null, "cannot open /dev/null in the sandbox");
	check(pipe2(gate, O_CLOEXEC), "pipe2");
	/* Children that end are heard of while init waits, and only then. */
	sigset_t child;
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	signal(SIGCHLD, on_child);
	int ask = eventfd(0, EFD_CLOEXEC), told = eventfd(0, EFD_CLOEXEC);
	check(ask, "eventfd");
	check(told, "eventfd");
	check(dup2(ask, HUSK_ASK_FD), "dup2");
	check(dup2(told, HUSK_TOLD_FD), "dup2");
	check(dup2(null, NULL_FD), "dup2");
	check(dup2(gate[0], GATE_READ_FD), "dup2");
	check(dup2(gate[1], GATE_WRITE_FD), "dup2");
	sys_close_range(3, HUSK_CHANNEL_FD - 1);
	pid_t husk = clone_husk(&plan->make);
	/* A keeper that died before PR_SET_PDEATHSIG took hold. */
	struct pollfd keeper = {.fd = KEEPER_FD, .events = POLLIN};
	if (poll(&keeper, 1, 0) != 0) _exit(1);
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/setgroups", husk);
	write_proc(path, "deny");
	write_map(husk, "gid_map", plan->make.uid);
	write_map(husk, "uid_map", plan->make.uid);
	check(write(GATE_WRITE_FD, "", 1), "cannot let the husk go");
	tell_ready(husk);
	for (int fd = 0; fd <= 2; fd++) dup2(NULL_FD, fd);
	sys_close_range(3, HUSK_CHANNEL_FD);
	sys_close_range(KEEPER_FD, ~0u);
	check(may_set_numbers(false) ? 0 : -1, "capset");
	serve(husk);
}
