/*
 * The builder: a process of its own that does everything slow, one job after another.
 *
 * It is a process and not a thread because a clone copies the page tables and the descriptor table of whoever clones: the
 * builder's stay tiny however many instances the keeper holds, and the keeper's hot buffers never become
 * copy-on-write. What it clones gets CLONE_PARENT, so that the keeper is the parent: it waits for them, and they
 * die with it (PR_SET_PDEATHSIG). Descriptors travel to the keeper by SCM_RIGHTS.
 *
 * A husk costs the builder only the clone; the new init does the rest beside the next job.
 *
 * Cgroups: for slot N of the pool the directory hN in each controller's parent. They are made once and reused
 * (a removed memory cgroup stays in the kernel while page cache is charged to it), with limits reset before reuse.
 * v1: init joins by itself. v2: it is cloned into the cgroup.
 *
 * Network namespaces belong to slots too: to make and destroy one costs more than all the others together. A function
 * has no capability over its network namespace and every socket ends with its processes, so what a namespace could carry
 * over is what the protocols keep by themselves (TIME_WAIT). One whose loopback ever moved a byte is therefore not
 * used again. The keeper holds their descriptors and lends them with the job.
 */
#include "keeper.h"

#include <grp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

enum { ARGUMENTS_MAX = 64, REMOVE_TRIES = 200, REMOVE_PAUSE_US = 10000 };

/* 64 MB, as /dev/shm. */
static const char TCP_BYTES_MAX[] = "67108864";

static int self_socket, keeper_process, self_proc, host_network, host_mounts, current_mounts;
static int templates[TEMPLATES_MAX];
static struct cgroups groups;
static unsigned slots_made;

uint64_t now_ns(void) {
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int send_with_fds(int socket, const void *data, size_t count, const int *fds, unsigned fd_count) {
	struct iovec part = {(void *)data, count};
	union { struct cmsghdr align; char room[CMSG_SPACE(sizeof(int) * (HUSK_FDS_MAX + 1))]; } control;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	if (fd_count > 0) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
		struct cmsghdr *head = CMSG_FIRSTHDR(&message);
		*head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int) * fd_count), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(head), fds, sizeof(int) * fd_count);
	}
	ssize_t sent;
	do sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT); while (sent < 0 && errno == EINTR);
	return sent == (ssize_t)count ? 0 : -(sent < 0 ? errno : EMSGSIZE);
}

ssize_t recv_with_fds(int socket, void *data, size_t count, int *fds, unsigned *fd_count, int flags) {
	struct iovec part = {data, count};
	union { struct cmsghdr align; char room[CMSG_SPACE(sizeof(int) * 8)]; } control;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	unsigned room = *fd_count;
	*fd_count = 0;
	ssize_t received;
	do received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | flags); while (received < 0 && errno == EINTR);
	if (received < 0) return -errno;
	for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head != NULL; head = CMSG_NXTHDR(&message, head)) {
		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
		unsigned got = (unsigned)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		if (got > room) got = room;
		memcpy(fds, CMSG_DATA(head), got * sizeof(int));
		*fd_count = got;
	}
	return received;
}

/* ---- cgroups ---- */

int cgroups_open(struct cgroups *to, const char *payload, size_t count, char *text) {
	const char *end = payload + count, *layout = payload;
	if (count == 0 || end[-1] != '\0') {
		snprintf(text, TEXT_BYTES, "the cgroup parents are cut short");
		return -EINVAL;
	}
	struct cgroups opened = {.on = true, .unified = strcmp(layout, "v2") == 0};
	const char *name = layout + strlen(layout) + 1;
	while (name < end) {
		const char *path = name + strlen(name) + 1;
		if (path >= end || opened.count == CONTROLLERS_MAX || strlen(name) >= sizeof opened.controllers[0].name || strlen(path) >= sizeof opened.controllers[0].path) {
			snprintf(text, TEXT_BYTES, "the cgroup parents are cut short, or more than %d", CONTROLLERS_MAX);
			return -EINVAL;
		}
		int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (dir < 0) {
			int error = errno;
			snprintf(text, TEXT_BYTES, "cannot open the cgroup directory %s: %s", path, strerror(error));
			return -error;
		}
		snprintf(opened.controllers[opened.count].name, sizeof opened.controllers[0].name, "%s", name);
		snprintf(opened.controllers[opened.count].path, sizeof opened.controllers[0].path, "%s", path);
		opened.controllers[opened.count++].dir = dir;
		name = path + strlen(path) + 1;
	}
	*to = opened;
	return 0;
}

static int cgroup_file(const struct cgroups *in, const char *controller, unsigned slot, const char *file, int flags) {
	for (unsigned index = 0; in->on && index < in->count; index++) {
		if (strcmp(in->controllers[index].name, controller) != 0) continue;
		char path[128];
		int length = snprintf(path, sizeof path, "h%u/%s", slot, file);
		if (length < 0 || length >= (int)sizeof path || strchr(file, '/') != NULL) return -EINVAL;
		int opened = openat(in->controllers[index].dir, path, flags | O_CLOEXEC);
		return opened < 0 ? -errno : opened;
	}
	return -ENODEV;
}

int cgroup_write(const struct cgroups *in, const char *controller, unsigned slot, const char *file, const char *value) {
	int opened = cgroup_file(in, controller, slot, file, O_WRONLY);
	if (opened < 0) return opened;
	int result;
	/* A lower limit of memory is given up at the first signal. */
	do result = write(opened, value, strlen(value)) < 0 ? -errno : 0;
	while (result == -EINTR);
	close(opened);
	return result;
}

ssize_t cgroup_read(const struct cgroups *in, const char *controller, unsigned slot, const char *file, char *buffer, size_t count) {
	int opened = cgroup_file(in, controller, slot, file, O_RDONLY);
	if (opened < 0) return opened;
	ssize_t result = read(opened, buffer, count - 1);
	buffer[result < 0 ? 0 : result] = '\0';
	close(opened);
	return result;
}

/* Files that a controller or kernel lacks are no error: what cannot limit needs no reset. */
static void reset_slot(unsigned slot) {
	static const char *const v1[][3] = {
		{"memory", "memory.memsw.limit_in_bytes", "-1"}, {"memory", "memory.limit_in_bytes", "-1"}, {"memory", "memory.max_usage_in_bytes", "0"},
		{"cpu", "cpu.cfs_quota_us", "-1"}, {"pids", "pids.max", "max"},
	};
	static const char *const v2[][3] = {
		{"unified", "memory.max", "max"}, {"unified", "memory.swap.max", "max"}, {"unified", "cpu.max", "max"}, {"unified", "pids.max", "max"},
	};
	for (size_t index = 0; !groups.unified && index < sizeof v1 / sizeof *v1; index++) cgroup_write(&groups, v1[index][0], slot, v1[index][1], v1[index][2]);
	for (size_t index = 0; groups.unified && index < sizeof v2 / sizeof *v2; index++) cgroup_write(&groups, v2[index][0], slot, v2[index][1], v2[index][2]);
}

static int prepare_slot(unsigned slot, bool reused, char *text) {
	if (!groups.on) return 0;
	if (slot >= slots_made) slots_made = slot + 1;
	if (reused) {
		reset_slot(slot);
		return 0;
	}
	char name[32];
	snprintf(name, sizeof name, "h%u", slot);
	for (unsigned index = 0; index < groups.count; index++) {
		if (mkdirat(groups.controllers[index].dir, name, 0755) == 0 || errno == EEXIST) continue;
		int error = errno;
		snprintf(text, TEXT_BYTES, "cannot make a cgroup for %s: %s; is the limit on cgroups reached?", groups.controllers[index].name, strerror(error));
		return -error;
	}
	/* Version 1 counts the buffers of TCP apart, and only where they were given a limit: a function could take memory beyond its own in them. */
	if (!groups.unified) cgroup_write(&groups, "memory", slot, "memory.kmem.tcp.limit_in_bytes", TCP_BYTES_MAX);
	return 0;
}

static void enter_mounts(int namespace) {
	if (namespace == current_mounts) return;
	if (setns(namespace, CLONE_NEWNS) != 0) die("cannot enter a mount namespace");
	current_mounts = namespace;
}

/* A cgroup stays busy for a moment after its last process was reaped. */
static void remove_cgroups(void) {
	for (unsigned index = 0; groups.on && index < groups.count; index++) {
		int tries = 0;
		for (unsigned slot = 0; slot < slots_made; slot++) {
			char name[32];
			snprintf(name, sizeof name, "h%u", slot);
			while (unlinkat(groups.controllers[index].dir, name, AT_REMOVEDIR) != 0 && errno == EBUSY && tries++ < REMOVE_TRIES) usleep(REMOVE_PAUSE_US);
		}
		/* The parent is the server's, which may have been killed; the one above is shared, and stays while another server has one. */
		char *path = groups.controllers[index].path;
		enter_mounts(host_mounts);
		if (rmdir(path) == 0 && strrchr(path, '/') != NULL) {
			*strrchr(path, '/') = '\0';
			rmdir(path);
		}
	}
}

/* ---- jobs ---- */

static int loopback_up(void) {
	int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (any < 0) return -errno;
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int result = ioctl(any, SIOCSIFFLAGS, &request) != 0 ? -errno : 0;
	close(any);
	return result;
}

/* Of the network namespace that the builder is in: nothing was ever sent in it. */
static bool network_unused(void) {
	char text[1024];
	int file = openat(self_proc, "net/dev", O_RDONLY | O_CLOEXEC);
	ssize_t count = file < 0 ? -1 : read(file, text, sizeof text - 1);
	if (file >= 0) close(file);
	if (count <= 0) return false;
	text[count] = '\0';
	const char *loopback = strstr(text, "lo:");
	return loopback != NULL && strtoull(loopback + 3, NULL, 10) == 0;
}

/* Enters a network namespace for the next clone: the one lent, if it is as good as new, or a new one, which is returned. */
static int enter_network(int lent, char *text) {
	if (lent >= 0 && setns(lent, CLONE_NEWNET) == 0 && network_unused()) return 0;
	int result = unshare(CLONE_NEWNET) != 0 ? -errno : loopback_up();
	int made = result < 0 ? result : openat(self_proc, "ns/net", O_RDONLY | O_CLOEXEC);
	if (made >= 0) return made;
	int error = result < 0 ? -result : errno;
	snprintf(text, TEXT_BYTES, "cannot make a network namespace with lo up: %s; is /proc/sys/user/max_net_namespaces reached?", strerror(error));
	return -error;
}

static int make_husk(const struct job *job, int lent, struct job_answer *answer, int *fds) {
	int template = job->make.template_id < TEMPLATES_MAX ? templates[job->make.template_id] : 0;
	if (template == 0) {
		snprintf(answer->text, TEXT_BYTES, "no template %u", job->make.template_id);
		return -ENOENT;
	}
	int result = prepare_slot(job->slot, job->reused != 0, answer->text);
	if (result < 0) return result;
	int network = enter_network(lent, answer->text);
	if (network < 0) return network;
	int status[2], channel[2], pidfd = -1, group = -1, on = 1;
	/* A handful of descriptors is open here: only a machine out of memory refuses these. */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, status) != 0) die("socketpair");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) != 0) die("socketpair");
	setsockopt(status[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
	struct clone_args args = {
		.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PARENT | CLONE_PIDFD,
		.pidfd = (uint64_t)(uintptr_t)&pidfd,
	};
	if (groups.on && groups.unified) {
		group = cgroup_file(&groups, groups.controllers[0].name, job->slot, ".", O_RDONLY | O_DIRECTORY);
		if (group >= 0) args.flags |= CLONE_INTO_CGROUP, args.cgroup = (uint64_t)group;
	}
	enter_mounts(template);
	struct init_plan plan = {.make = job->make, .groups = &groups, .slot = job->slot, .status = status[1], .channel = channel[1], .keeper_pidfd = keeper_process};
	long pid = groups.unified && group < 0 && groups.on ? group : sys_clone3(&args);
	if (pid == 0) init_run(&plan);
	int error = errno;
	if (group >= 0) close(group);
	close(status[1]);
	close(channel[1]);
	if (pid < 0) {
		close(status[0]);
		close(channel[0]);
		if (network > 0) close(network);
		snprintf(answer->text, TEXT_BYTES, "cannot clone an init: %s; are processes (pids.max) or namespaces (/proc/sys/user) used up?", strerror(error));
		return -error;
	}
	answer->pid = (int32_t)pid;
	fds[0] = pidfd;
	fds[1] = status[0];
	fds[2] = channel[0];
	fds[3] = network;
	return network > 0 ? 4 : 3;
}

static int run_helper(char *payload, size_t count, const int *lent, unsigned lent_count, struct job_answer *answer, int *fds) {
	char *argv[ARGUMENTS_MAX + 1];
	unsigned arguments = 0;
	if (count == 0 || payload[count - 1] != '\0') return -EINVAL;
	for (char *at = payload; at < payload + count; at += strlen(at) + 1) {
		if (arguments == ARGUMENTS_MAX) return -E2BIG;
		argv[arguments++] = at;
	}
	argv[arguments] = NULL;
	int output[2], failure[2], pidfd = -1, error = 0;
	if (pipe2(output, O_CLOEXEC) != 0) return -errno;
	if (pipe2(failure, O_CLOEXEC) != 0) {
		error = errno;
		close(output[0]);
		close(output[1]);
		return -error;
	}
	enter_mounts(host_mounts);
	if (setns(host_network, CLONE_NEWNET) != 0) die("cannot return to the host's network namespace");
	struct clone_args args = {.flags = CLONE_PARENT | CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&pidfd};
	long pid = sys_clone3(&args);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
		/* What is lent, or the way to tell a failure, may lie where another shall be: all go up first, then down to their places. */
		int kept[HELPER_FDS_MAX], placed = fcntl(failure[1], F_DUPFD_CLOEXEC, HELPER_FDS_MAX + 3);
		if (placed >= 0) failure[1] = placed;
		for (unsigned index = 0; index < lent_count && placed >= 0; index++) placed = kept[index] = fcntl(lent[index], F_DUPFD_CLOEXEC, HELPER_FDS_MAX + 3);
		bool ready = placed >= 0 && null >= 0 && dup2(null, 0) >= 0 && dup2(output[1], 1) >= 0;
		for (unsigned index = 0; index < lent_count && ready; index++) ready = dup2(kept[index], (int)index + 3) >= 0;
		if (ready) {
			signal(SIGPIPE, SIG_DFL);
			signal(SIGINT, SIG_DFL);
			signal(SIGTERM, SIG_DFL);
			signal(SIGHUP, SIG_DFL);
			execv(argv[0], argv);
		}
		error = errno;
		(void)!write(failure[1], &error, sizeof error);
		_exit(127);
	}
	if (pid < 0) error = errno;
	close(output[1]);
	close(failure[1]);
	/* Closed by the exec: no answer is good news. */
	if (pid > 0 && read(failure[0], &error, sizeof error) != sizeof error) error = 0;
	close(failure[0]);
	if (error != 0) {
		/* The keeper is the parent and reaps it. */
		close(output[0]);
		if (pid > 0) answer->pid = (int32_t)pid, fds[0] = pidfd;
		snprintf(answer->text, TEXT_BYTES, "cannot run %s: %s; was `npm run build` done?", argv[0], strerror(error));
		return -error;
	}
	answer->pid = (int32_t)pid;
	fds[0] = pidfd;
	fds[1] = output[0];
	return 2;
}

static int make_template(const struct job *job, const char *plan, size_t count, char *text) {
	if (job->id == 0 || job->id >= TEMPLATES_MAX) {
		snprintf(text, TEXT_BYTES, "template ids are 1 to %d", TEMPLATES_MAX - 1);
		return -EINVAL;
	}
	enter_mounts(host_mounts);
	int namespace = template_make(plan, count, host_mounts, text);
	if (namespace < 0) return namespace;
	if (templates[job->id] != 0) close(templates[job->id]);
	templates[job->id] = namespace;
	return 0;
}

static void run_job(const struct job *job, int payload_fd, const int *lent, unsigned lent_count) {
	struct job_answer answer = {.kind = job->kind, .id = job->id, .started_ns = now_ns()};
	struct stat info = {0};
	char *payload = NULL;
	int fds[4], result = 0;
	if (payload_fd >= 0 && job->kind != JOB_HUSK && fstat(payload_fd, &info) == 0 && info.st_size > 0) {
		payload = mmap(NULL, (size_t)info.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, payload_fd, 0);
		if (payload == MAP_FAILED) die("cannot map a job of %lld bytes", (long long)info.st_size);
	}
	size_t count = payload == NULL ? 0 : (size_t)info.st_size;
	if (job->kind == JOB_TEMPLATE) result = make_template(job, payload, count, answer.text);
	else if (job->kind == JOB_CGROUPS) result = cgroups_open(&groups, payload, count, answer.text);
	else if (job->kind == JOB_HUSK) result = make_husk(job, payload_fd, &answer, fds);
	else if (job->kind == JOB_HELPER) result = run_helper(payload, count, lent, lent_count, &answer, fds);
	else if (job->kind == JOB_QUIT) remove_cgroups();
	if (payload != NULL) munmap(payload, count);
	unsigned fd_count = result > 0 ? (unsigned)result : 0;
	if (result < 0) {
		answer.error = -result;
		if (answer.text[0] == '\0') snprintf(answer.text, TEXT_BYTES, "the builder failed: %s", strerror(-result));
	}
	if (answer.error != 0 && answer.pid > 0) fd_count = 1;
	size_t bytes = offsetof(struct job_answer, text) + strlen(answer.text) + 1;
	if (send_with_fds(self_socket, &answer, bytes, fds, fd_count) < 0) die("cannot answer the keeper");
	for (unsigned index = 0; index < fd_count; index++) close(fds[index]);
}

_Noreturn void builder_run(int socket, int keeper_pidfd) {
	self_socket = socket;
	keeper_process = keeper_pidfd;
	prctl(PR_SET_NAME, "thaw-builder");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setgroups(0, NULL);
	host_mounts = current_mounts = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	if (host_mounts < 0) die("cannot open /proc/self/ns/mnt; is /proc mounted?");
	host_network = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (host_network < 0) die("cannot open /proc/self/ns/net");
	char path[64];
	snprintf(path, sizeof path, "/proc/%d", getpid());
	self_proc = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (self_proc < 0) die("cannot open %s", path);
	for (;;) {
		struct job job;
		int received_fds[1 + HELPER_FDS_MAX];
		unsigned count = 1 + HELPER_FDS_MAX;
		ssize_t received = recv_with_fds(socket, &job, sizeof job, received_fds, &count, 0);
		if (received != (ssize_t)sizeof job) _exit(received == 0 ? 0 : 1);
		run_job(&job, count > 0 ? received_fds[0] : -1, received_fds + 1, count > 1 ? count - 1 : 0);
		while (count > 0) close(received_fds[--count]);
		if (job.kind == JOB_QUIT) _exit(0);
	}
}
