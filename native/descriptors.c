/*
 * Descriptors (part of the extractor).
 *
 * What a descriptor is, is read from /proc/PID/fdinfo and from a duplicate of it (pidfd_getfd). dup'ed descriptors
 * share one description, and epoll may hold entries whose descriptor is closed or means another file by now: both are
 * told apart with kcmp. Kinds that are not listed here, or in sockets.c, are refused with their name.
 */
#include "descriptors.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/vfs.h>
#include <unistd.h>

#define FDS_MAX 4096
#define INFO_LINE_BYTES 96 /* of an entry of an epoll */
#define TIMERFD "anon_inode:[timerfd]"
#define MQUEUE_MAGIC 0x19800202 /* linux/magic.h knows it not */

struct descriptor *descriptors;
int descriptor_count;
/* Their indices in the kernel's order of what is open behind them (kcmp): those of one description stand together. */
static int *by_description;
static pid_t pid;

uint64_t info_number(const struct descriptor *d, const char *name, int base)
{
	const char *at = strstr(d->info, name);
	return at ? strtoull(at + strlen(name), NULL, base) : 0;
}

static int order_of(long compared)
{
	if (compared < 0 || compared > 2)
		die("cannot compare descriptors: %s (a kernel without CONFIG_KCMP?)", strerror(errno));
	return compared == 1 ? -1 : compared == 2;
}

static int compare_descriptions(const void *left, const void *right)
{
	int a = *(const int *)left, b = *(const int *)right;
	int order = order_of(syscall(SYS_kcmp, pid, pid, KCMP_FILE, descriptors[a].fd, descriptors[b].fd));
	return order ? order : a - b;
}

/* Each comparison is a system call while all is stopped: by hundreds of descriptors and of epoll entries it must not be all with all. */
static void find_same(void)
{
	by_description = malloc(((size_t)descriptor_count + 1) * sizeof *by_description);
	if (!by_description)
		die("out of memory");
	for (int i = 0; i < descriptor_count; i++)
		by_description[i] = i;
	qsort(by_description, (size_t)descriptor_count, sizeof *by_description, compare_descriptions);
	for (int i = 1; i < descriptor_count; i++) {
		struct descriptor *before = &descriptors[by_description[i - 1]], *one = &descriptors[by_description[i]];
		if (order_of(syscall(SYS_kcmp, pid, pid, KCMP_FILE, before->fd, one->fd)) == 0)
			one->same = before->same;
	}
}

/* A descriptor of the file that is meant by an entry of an epoll, the one of that number if it is one; -1: it is open nowhere. */
static int find_watched(const struct kcmp_epoll_slot *slot)
{
	int low = 0, high = descriptor_count;
	if (syscall(SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, slot->tfd, slot) == 0)
		return (int)slot->tfd;
	while (low < high) {
		int middle = (low + high) / 2;
		int order = order_of(syscall(SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, descriptors[by_description[middle]].fd, slot));
		if (order == 0)
			return descriptors[by_description[middle]].same;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return -1;
}

static void read_descriptors(const struct target *target)
{
	static char text[FDS_MAX * INFO_LINE_BYTES];
	char path[64];
	pid = target->pid;
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		die("pidfd_open: %s", strerror(errno));
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	DIR *list = opendir(path);
	if (!list)
		die("cannot list descriptors: %s", strerror(errno));
	descriptors = calloc(FDS_MAX, sizeof *descriptors);
	if (!descriptors)
		die("out of memory");
	for (struct dirent *entry; (entry = readdir(list));) {
		if (entry->d_name[0] == '.')
			continue;
		if (descriptor_count == FDS_MAX)
			refuse("it has more than %d open descriptors", FDS_MAX);
		struct descriptor *d = &descriptors[descriptor_count++];
		d->fd = d->same = atoi(entry->d_name);
		ssize_t got = readlinkat(dirfd(list), entry->d_name, d->link, sizeof d->link - 1);
		d->mine = (int)syscall(SYS_pidfd_getfd, pidfd, d->fd, 0);
		if (got < 0 || d->mine < 0 || fstat(d->mine, &d->is) != 0)
			die("cannot look at descriptor %d: %s", d->fd, strerror(errno));
		d->link[got] = 0;
		/* The kernel counts how often it has expired when it is asked for something, and fdinfo does not ask. */
		if (strcmp(d->link, TIMERFD) == 0)
			timerfd_gettime(d->mine, &(struct itimerspec){ 0 });
		snprintf(path, sizeof path, "/proc/%d/fdinfo/%d", pid, d->fd);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		size_t have = 0;
		while (fd >= 0 && have < sizeof text - 1 && (got = read(fd, text + have, sizeof text - 1 - have)) > 0)
			have += (size_t)got;
		if (fd < 0 || got < 0)
			die("cannot read %s: %s", path, strerror(errno));
		if (have == sizeof text - 1)
			refuse("descriptor %d has too many entries to list", d->fd);
		close(fd);
		d->info = strndup(text, have);
		if (!d->info)
			die("out of memory");
		d->flags = info_number(d, "flags:\t", 8);
		d->pos = info_number(d, "pos:\t", 10);
	}
	closedir(list);
	close(pidfd);
	find_same();
}

/* ---- kinds ---- */

int events_of(const struct descriptor *d)
{
	struct pollfd ask = { .fd = d->mine, .events = POLLIN | POLLOUT | POLLRDHUP };
	return poll(&ask, 1, 0) == 1 ? ask.revents : 0;
}

void refuse_rest(const struct descriptor *d, size_t got, const char *where, const char *apart)
{
	int unread = 0;
	if (ioctl(d->mine, FIONREAD, &unread) != 0)
		die("cannot tell what lies unread behind descriptor %d: %s", d->fd, strerror(errno));
	if ((size_t)unread > got && unread <= QUEUE_BYTES_MAX)
		refuse("%s (descriptor %d)", apart, d->fd);
	if ((size_t)unread > got)
		refuse("more than %d KiB lie unread in %s (descriptor %d)", QUEUE_BYTES_MAX >> 10, where, d->fd);
}

static void write_pipe(const struct descriptor *d)
{
	json_string("kind", "pipe");
	json_int("inode", (int64_t)d->is.st_ino);
	if ((d->flags & O_ACCMODE) == O_RDWR)
		refuse("it holds a pipe open for reading and writing (descriptor %d)", d->fd);
	static const char packets[] = "it holds a pipe of packets (O_DIRECT)";
	if (d->flags & O_DIRECT) /* its writing end */
		refuse("%s (descriptor %d)", packets, d->fd);
	bool reads = (d->flags & O_ACCMODE) == O_RDONLY;
	json_string("end", reads ? "read" : "write");
	json_int("capacity", fcntl(d->mine, F_GETPIPE_SZ));
	if (!reads) {
		/* Nobody reads it, unlike the log pipe, whose reader is the keeper. */
		if (events_of(d) & POLLERR)
			json_int("broken", 1);
		return;
	}
	static uint8_t bytes[QUEUE_BYTES_MAX];
	int copy[2];
	if (pipe2(copy, O_CLOEXEC | O_NONBLOCK) != 0)
		die("pipe: %s", strerror(errno));
	fcntl(copy[1], F_SETPIPE_SZ, QUEUE_BYTES_MAX);
	/* tee copies what lies in the pipe and leaves it there */
	ssize_t teed = tee(d->mine, copy[1], QUEUE_BYTES_MAX, SPLICE_F_NONBLOCK);
	ssize_t got = teed > 0 ? read(copy[0], bytes, sizeof bytes) : 0;
	if ((teed < 0 && errno != EAGAIN) || got < 0)
		die("cannot read the pipe behind descriptor %d: %s", d->fd, strerror(errno));
	refuse_rest(d, (size_t)got, "a pipe", packets);
	json_bytes("bytes", bytes, (size_t)got);
	close(copy[0]);
	close(copy[1]);
}

static void write_epoll(const struct descriptor *d)
{
	json_string("kind", "epoll");
	json_open("entries", '[');
	uint32_t seen[FDS_MAX][2];
	int seen_count = 0;
	for (const char *at = d->info; (at = strstr(at, "tfd:")); at++) {
		int fd;
		unsigned int events;
		uint64_t data;
		if (sscanf(at, "tfd: %d events: %x data: %" SCNx64, &fd, &events, &data) != 3)
			continue;
		/* the n-th entry with this number: stale entries repeat numbers */
		uint32_t nth = 0;
		for (int i = 0; i < seen_count; i++)
			if (seen[i][0] == (uint32_t)fd)
				nth = ++seen[i][1];
		if (nth == 0 && seen_count < FDS_MAX) {
			seen[seen_count][0] = (uint32_t)fd;
			seen[seen_count++][1] = 0;
		}
		struct kcmp_epoll_slot slot = { .efd = (uint32_t)d->fd, .tfd = (uint32_t)fd, .toff = nth };
		int file = find_watched(&slot);
		if (file < 0) {
			note("an epoll entry for descriptor %d refers to a file that is open nowhere; it is left out", fd);
			continue;
		}
		json_open(NULL, '{');
		json_int("fd", fd);
		json_int("file", file);
		json_int("events", events);
		json_hex("data", data);
		json_close('}');
	}
	json_close(']');
}

static void write_timerfd(const struct descriptor *d)
{
	long long seconds, nanoseconds, every_s, every_ns;
	const char *value = strstr(d->info, "it_value:"), *interval = strstr(d->info, "it_interval:");
	if (!value || !interval || sscanf(value, "it_value: (%lld, %lld)", &seconds, &nanoseconds) != 2 ||
	    sscanf(interval, "it_interval: (%lld, %lld)", &every_s, &every_ns) != 2)
		die("cannot read timer descriptor %d", d->fd);
	json_string("kind", "timerfd");
	json_int("clock", (int64_t)info_number(d, "clockid: ", 10));
	json_int("ticks", (int64_t)info_number(d, "ticks: ", 10));
	json_open("value", '[');
	json_int(NULL, seconds);
	json_int(NULL, nanoseconds);
	json_close(']');
	json_open("interval", '[');
	json_int(NULL, every_s);
	json_int(NULL, every_ns);
	json_close(']');
}

int enter_namespace(const char *name, int kind)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, name);
	int ns = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof path, "/proc/self/ns/%s", name);
	int home = open(path, O_RDONLY | O_CLOEXEC);
	if (ns < 0 || home < 0 || setns(ns, kind) != 0)
		die("cannot enter the %s namespace: %s", name, strerror(errno));
	close(ns);
	return home;
}

int leave_namespace(int home, int kind)
{
	int result = setns(home, kind);
	close(home);
	return result;
}

/* Is known by keys and numbers alone: no descriptor tells of it, and a clone would have none. */
static void refuse_ipc(void)
{
	struct shm_info memory = { 0 };
	struct seminfo semaphores = { 0 };
	struct msginfo queues = { 0 };
	int home = enter_namespace("ipc", CLONE_NEWIPC);
	bool told = shmctl(0, SHM_INFO, (struct shmid_ds *)&memory) >= 0 && semctl(0, 0, SEM_INFO, &semaphores) >= 0 &&
		    msgctl(0, MSG_INFO, (struct msqid_ds *)&queues) >= 0;
	int error = errno;
	if (leave_namespace(home, CLONE_NEWIPC) != 0)
		die("cannot leave the ipc namespace: %s", strerror(errno));
	if (!told && error == ENOSYS)
		return; /* a kernel without CONFIG_SYSVIPC */
	if (!told)
		die("cannot look for System V IPC: %s", strerror(error));
	const int counts[] = { memory.used_ids, semaphores.semusz, queues.msgpool };
	static const char *const names[] = { "shared memory", "semaphores", "message queues" };
	for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
		if (counts[i] > 0)
			refuse("it holds System V %s (%d)", names[i], counts[i]);
}

const char *lasting_path(pid_t of, const char *link)
{
	static char path[sizeof descriptors->link + 16];
	char own[32];
	if (strncmp(link, "/proc/", 6) != 0)
		return link;
	size_t length = (size_t)snprintf(own, sizeof own, "/proc/%d", inner_tid(of, of));
	if (strncmp(link, own, length) != 0 || (link[length] && link[length] != '/'))
		return link;
	if (strncmp(link + length, "/task/", 6) == 0)
		return NULL;
	snprintf(path, sizeof path, "/proc/self%s", link + length);
	return path;
}

static void write_locks(const struct descriptor *d)
{
	char type[16], mode[16], end[32];
	unsigned long long start;
	bool any = false;
	for (const char *at = d->info; (at = strstr(at, "lock:\t")); at++) {
		if (sscanf(at, "lock:\t%*d: %15s %*s %15s %*d %*s %llu %31s", type, mode, &start, end) != 4)
			continue;
		/* Whoever opens the file waits until its holder has heard of it, and that one stands still: 45 s for each. */
		if (strcmp(type, "LEASE") == 0)
			refuse("it holds a lease on %s (descriptor %d)", d->link, d->fd);
		if (!any)
			json_open("locks", '[');
		any = true;
		json_open(NULL, '{');
		json_string("type", type);
		json_int("write", strcmp(mode, "WRITE") == 0);
		json_hex("start", start);
		/* 0: to the end, however far that moves */
		json_hex("bytes", strcmp(end, "EOF") == 0 ? 0 : strtoull(end, NULL, 10) - start + 1);
		json_close('}');
	}
	if (any)
		json_close(']');
}

/* There, a directory made anew counts its entries anew. */
static bool is_temporary(const char *path)
{
	return strncmp(path, "/tmp", 4) == 0 && (path[4] == '/' || path[4] == 0);
}

/* A file without a name may have been opened twice, and what is written by one is read by the other. */
static const struct descriptor *first_of(const struct descriptor *d)
{
	const struct descriptor *first = descriptors;
	while (first->is.st_ino != d->is.st_ino || first->is.st_dev != d->is.st_dev)
		first++;
	return first;
}

/*
 * SQLite knows an open file by device and inode number, and a clone's /tmp is another device. Where in memory the numbers stand is looked for in what was stored
 * (src/image/databases.ts). One without a byte may be about to become a database.
 */
static void write_database(const struct descriptor *d)
{
	static const char begins[] = "SQLite format 3";
	char head[sizeof begins];
	ssize_t got = is_temporary(d->link) ? pread(d->mine, head, sizeof head, 0) : -1;
	if (got != 0 && (got != sizeof head || memcmp(head, begins, sizeof head) != 0))
		return;
	json_open("database", '{');
	json_hex("device", d->is.st_dev);
	json_hex("inode", d->is.st_ino);
	if (got == 0)
		json_int("empty", 1);
	json_close('}');
}

static void write_file(const struct descriptor *d)
{
	static const char gone[] = " (deleted)";
	struct statfs where;
	if (fstatfs(d->mine, &where) == 0 && where.f_type == MQUEUE_MAGIC)
		refuse("it holds a POSIX message queue (%s, descriptor %d)", d->link, d->fd);
	size_t length = strlen(d->link);
	bool deleted = d->is.st_nlink == 0;
	if (!deleted && length > sizeof gone && strcmp(d->link + length - (sizeof gone - 1), gone) == 0)
		refuse("it holds a file open under a name that was removed, while it has another (%s)", d->link);
	json_string("kind", S_ISDIR(d->is.st_mode) ? "directory" : "file");
	const char *path = lasting_path(pid, d->link);
	if (!path)
		refuse("it holds %s open (descriptor %d)", d->link, d->fd);
	json_path("path", path);
	json_int("mode", d->is.st_mode & 07777);
	if (S_ISREG(d->is.st_mode))
		write_locks(d);
	else if (d->pos != 0 && is_temporary(d->link))
		note("the directory %s (descriptor %d), which was read in part, will be read from its beginning", d->link, d->fd);
	if (!deleted && S_ISREG(d->is.st_mode))
		write_database(d);
	if (!deleted)
		return;
	if (S_ISDIR(d->is.st_mode))
		refuse("it holds a deleted directory open (%s)", d->link);
	json_int("deleted", 1);
	const struct descriptor *first = first_of(d);
	if (first != d) {
		json_int("of", first->fd);
		return;
	}
	bool memfd = strncmp(d->link, "/memfd:", 7) == 0;
	int seals = memfd ? fcntl(d->mine, F_GET_SEALS) : -1;
	json_int("memfd", memfd);
	/* Those that may not be sealed say F_SEAL_SEAL. */
	if (seals >= 0 && seals != F_SEAL_SEAL)
		json_int("seals", seals);
	/* Anew: it may be open for writing alone. */
	char self[32];
	snprintf(self, sizeof self, "/proc/self/fd/%d", d->mine);
	int from = open(self, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	/* By another descriptor. Not waiting: its holder stands still. */
	if (from < 0 && errno == EWOULDBLOCK)
		refuse("there is a lease on %s (descriptor %d)", d->link, d->fd);
	if (from < 0)
		die("cannot open %s (descriptor %d): %s", d->link, d->fd, strerror(errno));
	store_contents(from, (uint64_t)d->is.st_size, d->link);
	close(from);
}

/* libuv keeps its inotify descriptor after the last watcher was closed. */
static bool watches_nothing(const struct descriptor *d)
{
	int unread = 0;
	return !strstr(d->info, "inotify wd:") && ioctl(d->mine, FIONREAD, &unread) == 0 && unread == 0;
}

/* Whom a signal tells that it is ready: the process, or one of its threads. Others are not there in a clone. */
static void write_owner(const struct target *target, const struct descriptor *d)
{
	struct f_owner_ex owner = { 0 };
	int number = -1;
	if (d->same != d->fd || fcntl(d->mine, F_GETOWN_EX, &owner) != 0 || owner.pid == 0 || owner.type == F_OWNER_PGRP)
		return;
	for (int i = 0; i < target->thread_count; i++)
		if (target->threads[i].tid == owner.pid && (i == 0 || owner.type == F_OWNER_TID))
			number = i == 0 ? 0 : target->threads[i].number;
	if (number < 0)
		return;
	json_open("owner", '{');
	json_int("type", owner.type);
	json_int("number", number);
	json_int("signal", fcntl(d->mine, F_GETSIG));
	json_close('}');
}

static void write_descriptor(const struct target *target, const struct descriptor *d)
{
	json_open(NULL, '{');
	json_int("fd", d->fd);
	json_int("flags", (int64_t)d->flags);
	json_hex("pos", d->pos);
	write_owner(target, d);
	if (d->fd == target->control_fd) {
		json_string("kind", "control");
	} else if (d->same != d->fd) {
		json_string("kind", "same");
		json_int("as", d->same);
	} else if (S_ISFIFO(d->is.st_mode)) {
		if (d->is.st_nlink > 0 && d->link[0] == '/')
			refuse("it holds a named pipe open (%s)", d->link);
		write_pipe(d);
	} else if (S_ISSOCK(d->is.st_mode)) {
		write_socket(d);
	} else if (S_ISREG(d->is.st_mode) && d->link[0] == '/') {
		write_file(d);
	} else if (S_ISDIR(d->is.st_mode)) {
		write_file(d);
	} else if (S_ISCHR(d->is.st_mode) && major(d->is.st_rdev) == 1) {
		json_string("kind", "device");
		json_path("path", d->link);
	} else if (strcmp(d->link, "anon_inode:[eventfd]") == 0) {
		json_string("kind", "eventfd");
		json_hex("count", info_number(d, "eventfd-count: ", 16));
		json_int("semaphore", (int64_t)info_number(d, "eventfd-semaphore: ", 10));
	} else if (strcmp(d->link, "anon_inode:[eventpoll]") == 0) {
		write_epoll(d);
	} else if (strcmp(d->link, TIMERFD) == 0) {
		write_timerfd(d);
	} else if (strcmp(d->link, "anon_inode:[signalfd]") == 0) {
		json_string("kind", "signalfd");
		json_hex("mask", info_number(d, "sigmask:\t", 16));
	} else if (strcmp(d->link, "anon_inode:inotify") == 0) {
		if (!watches_nothing(d))
			refuse("it watches files, or has not read what it saw of them (inotify, descriptor %d)", d->fd);
		json_string("kind", "inotify");
	} else {
		refuse("it holds %s (descriptor %d)", d->link, d->fd);
	}
	json_close('}');
}

void close_descriptors(void)
{
	for (size_t i = 0; i < (size_t)descriptor_count; i++)
		close(descriptors[i].mine);
}

void write_descriptors(const struct target *target)
{
	read_descriptors(target);
	refuse_ipc();
	json_open("descriptors", '[');
	for (int i = 0; i < descriptor_count; i++)
		write_descriptor(target, &descriptors[i]);
	json_close(']');
}
