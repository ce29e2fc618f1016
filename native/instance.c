/*
 * What happens to one instance, from the answer of the builder to its exit.
 *
 *   QUEUED ──builder──▶ CLONED ──init: READY──▶ READY ──pidfd of init──▶ ENDED
 *
 * Order that the server may rely on: a log byte that was written before a reply arrives before it (the pipe is drained before
 * DATA is sent on); STAGE_DONEs come in the order of their STAGEs, and before what the function sends; EXIT is the last message.
 * Nothing here waits, and every read is bounded: what is left is found again by epoll, which is level-triggered.
 */
#include "instance.h"
#include "pager.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <signal.h>

enum { LOG_READ_BYTES = 64 << 10, LAST_READS_MAX = 256, SEND_BUFFER_BYTES = 8 << 20, REPLY_BUFFER_BYTES = 1 << 20 };
/* As many descriptors as the kernel passes with one message (SCM_MAX_FD). */
enum { PASSED_MAX = 253 };

/* ---- logs and control ---- */

static void close_log(struct instance *it) {
	int fd = watch_take(&it->log);
	if (fd < 0) return;
	call_begins(it);
	close(fd);
	call_ends(it);
}

static ssize_t read_log(struct instance *it) {
	uint8_t bytes[LOG_READ_BYTES];
	int fd = it->log.fd;
	if (fd < 0) return 0;
	call_begins(it);
	ssize_t count = read(fd, bytes, sizeof bytes);
	call_ends(it);
	if (count > 0) memcpy(frame_room((size_t)count), bytes, (size_t)count), frame_end(MSG_LOG, it->id, 0, 0, (size_t)count);
	else if (count == 0 || (errno != EAGAIN && errno != EINTR)) close_log(it);
	return count;
}

/*
 * A function may pass descriptors with what it writes to descriptor 3, and whoever closes the last one waits as long as it says: a
 * TCP socket with SO_LINGER, its peer not reading, holds up a close for days, and with the keeper everybody. Only a process that exits never
 * waits for that (inet_release looks at PF_EXITING), nor for what lies in the queue of a unix socket that was passed. So such
 * descriptors are held by a child when they are closed here, and it exits. It may wait all the same, for the lock of a pipe that was passed, and is not waited for.
 */
struct closer {
	pid_t pid;
	int gate;
	struct closer *next;
};
static struct closer *closers;

static struct closer *closer_start(void) {
	int gate[2];
	struct closer *it = malloc(sizeof *it);
	if (it == NULL || pipe2(gate, O_CLOEXEC) != 0) {
		free(it);
		return NULL;
	}
	it->pid = fork();
	if (it->pid == 0) {
		char none;
		close(gate[1]);
		(void)!read(gate[0], &none, 1);
		_exit(0);
	}
	close(gate[0]);
	it->gate = gate[1];
	return it;
}

static void closer_end(struct closer *it) {
	if (it == NULL) return;
	close(it->gate);
	it->next = closers;
	closers = it;
}

void closers_reap(void) {
	for (struct closer **link = &closers; *link != NULL;) {
		struct closer *it = *link;
		if (it->pid > 0 && waitpid(it->pid, NULL, WNOHANG) == 0) {
			link = &it->next;
			continue;
		}
		*link = it->next;
		free(it);
	}
}

void closers_end(uint64_t deadline_ns) {
	for (closers_reap(); closers != NULL && now_ns() < deadline_ns; closers_reap()) usleep(1000);
}

/* What was not read may carry descriptors too. */
static void close_control(struct instance *it) {
	int unread = 0;
	if (it->control.fd < 0 || ioctl(it->control.fd, FIONREAD, &unread) != 0 || unread == 0) return watch_close(&it->control);
	struct closer *closer = closer_start();
	watch_close(&it->control);
	closer_end(closer);
}

/* Nobody passes descriptors there but code that means harm: its instance ends, and what else it has sent is not looked at: each message would cost a child. */
static void refuse_passed(struct instance *it, struct msghdr *message) {
	struct cmsghdr *head = CMSG_FIRSTHDR(message);
	if ((message->msg_flags & MSG_CTRUNC) != 0) instance_kill(it);
	if (head == NULL || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) return;
	instance_kill(it);
	struct closer *closer = closer_start();
	for (size_t at = 0; at < (head->cmsg_len - CMSG_LEN(0)) / sizeof(int); at++) {
		int fd;
		memcpy(&fd, CMSG_DATA(head) + at * sizeof fd, sizeof fd);
		close(fd);
	}
	closer_end(closer);
	close_control(it);
}

static ssize_t receive_control(struct instance *it, void *data, size_t count) {
	struct iovec part = {data, count};
	union { struct cmsghdr align; char room[CMSG_SPACE(sizeof(int) * PASSED_MAX)]; } control;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t received = recvmsg(it->control.fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (received > 0 && (message.msg_controllen > 0 || (message.msg_flags & MSG_CTRUNC) != 0)) refuse_passed(it, &message);
	return received;
}

static bool read_control(struct instance *it) {
	if (it->control.fd < 0) return false;
	ssize_t count = receive_control(it, frame_room(READ_BYTES), READ_BYTES);
	if (count > 0) {
		frame_end(MSG_DATA, it->id, 0, 0, (size_t)count);
	} else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
		/* The kernel's word for a peer that left with bytes in its socket. */
		if (count < 0 && errno == ECONNRESET) it->unread = true;
		/* DATA without bytes: the function closed its end. */
		frame_put(MSG_DATA, it->id, 0, NULL, 0);
		close_control(it);
	}
	return count > 0;
}

/* What is there now. Whoever prints faster than this reads is not followed: others wait. */
static void drain_log(struct instance *it) {
	if (read_log(it) < LOG_READ_BYTES) return;
	int left = 0;
	call_begins(it);
	ioctl(it->log.fd, FIONREAD, &left);
	call_ends(it);
	for (ssize_t count = 1; left > 0 && count > 0; left -= (int)count) count = read_log(it);
}

static void flush_sending(struct instance *it) {
	if (it->held > 0) return watch_events(&it->control, EPOLLIN);
	while (bytes_used(&it->sending) > 0) {
		ssize_t count = send(it->control.fd, it->sending.data + it->sending.start, bytes_used(&it->sending), MSG_DONTWAIT | MSG_NOSIGNAL);
		if (count < 0 && errno == EINTR) continue;
		if (count < 0 && errno == EAGAIN) return;
		/* Whoever does not read any more does not get the rest; its end is seen by reading. */
		if (count < 0) it->unread = true;
		bytes_take(&it->sending, count < 0 ? bytes_used(&it->sending) : (size_t)count);
	}
	watch_events(&it->control, EPOLLIN);
}

int instance_send(struct instance *it, const uint8_t *payload, size_t count) {
	if (count == 0) return 0;
	if (it->control.fd < 0) {
		it->unread = true;
		return -EPIPE;
	}
	size_t sent = 0;
	if (bytes_used(&it->sending) == 0 && it->held == 0) {
		ssize_t result = send(it->control.fd, payload, count, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (result < 0 && errno != EAGAIN && errno != EINTR) {
			it->unread = true;
			return -EPIPE;
		}
		if (result > 0) sent = (size_t)result;
		if (sent == count) return 0;
		watch_events(&it->control, EPOLLIN | EPOLLOUT);
	}
	memcpy(bytes_room(&it->sending, count - sent), payload + sent, count - sent);
	it->sending.end += count - sent;
	return 0;
}

void instance_hold(struct instance *it) { it->held++; }

void instance_release(struct instance *it) {
	if (it->held == 0 || --it->held > 0 || it->control.fd < 0 || bytes_used(&it->sending) == 0) return;
	watch_events(&it->control, EPOLLIN | EPOLLOUT);
	flush_sending(it);
}

/* ---- stages ---- */

static void stage_done(struct instance *it, const struct husk_report *report) {
	frame_put(MSG_STAGE_DONE, it->id, it->stage_tags[it->stage_first], report, sizeof *report);
	it->stage_first = (it->stage_first + 1) % STAGES_MAX;
	it->stage_count--;
}

void instance_uffd_close(struct instance *it) {
	if (it->uffd >= 0) close(it->uffd);
	it->uffd = -1;
}

void instance_uffd_let_go(struct instance *it) {
	int fd = it->uffd;
	it->uffd = -1;
	if (fd < 0) return;
	call_begins(NULL);
	close(fd);
	call_ends(NULL);
}

static void take_gift(struct instance *it, uint32_t kind, int fd) {
	int *place = kind == GIFT_GATE ? &it->gate : kind == GIFT_PAGED ? &it->paged_uffd : &it->uffd;
	if (*place >= 0) close_aside(*place);
	*place = fd;
	if (kind == GIFT_PAGED) paging_adopt(it);
}

/* One message of the channel. `fd` is what came with it, or -1. */
static ssize_t receive_report(int channel, struct husk_report *report, int *fd) {
	struct iovec part = {report, sizeof *report};
	union { struct cmsghdr align; char room[CMSG_SPACE(sizeof(int))]; } control;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	*fd = -1;
	ssize_t count = recvmsg(channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *head = count < 0 ? NULL : CMSG_FIRSTHDR(&message);
	if (head != NULL && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS && head->cmsg_len == CMSG_LEN(sizeof(int))) memcpy(fd, CMSG_DATA(head), sizeof *fd);
	return count;
}

static void read_reports(struct instance *it) {
	struct husk_report report;
	for (int reads = 0; it->channel.fd >= 0 && reads < STAGES_MAX + 2; reads++) {
		int fd;
		ssize_t count = receive_report(it->channel.fd, &report, &fd);
		if (count == (ssize_t)sizeof(struct husk_gift) && report.magic == HUSK_GIFT_MAGIC && fd >= 0) {
			struct husk_gift gift;
			memcpy(&gift, &report, sizeof gift);
			take_gift(it, gift.kind, fd);
			continue;
		}
		if (fd >= 0) close(fd);
		/* Told once, before the reports that lie queued, when a husk died with stages unread. */
		if (count < 0 && errno == ECONNRESET) continue;
		if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
		if (count == (ssize_t)sizeof report && report.magic == HUSK_REPORT_MAGIC && it->stage_count > 0) {
			stage_done(it, &report);
			continue;
		}
		/* Closed by its death, or by the last program of a husk that is a function now. */
		watch_close(&it->channel);
		if (count > 0) instance_kill(it);
		struct husk_report broken = {.magic = HUSK_REPORT_MAGIC, .status = -EPIPE};
		while (it->stage_count > 0) stage_done(it, &broken);
	}
}

static int clone_tree(int directory) {
	int tree = sys_open_tree(directory, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
	if (tree < 0) return -1;
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
	if (sys_mount_setattr(tree, AT_EMPTY_PATH, &attr) == 0) return tree;
	int error = errno;
	close(tree);
	errno = error;
	return -1;
}

/* Kept ready for the next start: making them is a third of what the keeper does while a request waits. -1 = none. */
static int spare_control[2] = {-1, -1}, spare_log[2] = {-1, -1};

static int new_control(int pair[2]) {
	int keeper_bytes = SEND_BUFFER_BYTES, function_bytes = REPLY_BUFFER_BYTES;
	int on = 1;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return -1;
	/* Else an urgent byte is dropped unread, and what was passed with it is closed then and there. */
	setsockopt(pair[0], SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
	if (setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &keeper_bytes, sizeof keeper_bytes) != 0) setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &keeper_bytes, sizeof keeper_bytes);
	if (setsockopt(pair[1], SOL_SOCKET, SO_SNDBUFFORCE, &function_bytes, sizeof function_bytes) != 0) setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &function_bytes, sizeof function_bytes);
	return 0;
}

static int new_log(int pair[2]) {
	if (pipe2(pair, O_CLOEXEC) != 0) return -1;
	/* Only this end: the function's own writes shall wait. */
	fcntl(pair[0], F_SETFL, O_NONBLOCK);
	return 0;
}

static int take_pair(int spare[2], int (*make)(int pair[2]), int *kept) {
	int pair[2] = {spare[0], spare[1]};
	spare[0] = spare[1] = -1;
	if (pair[0] < 0 && make(pair) != 0) return -1;
	*kept = pair[0];
	return pair[1];
}

bool spares_lack(void) { return spare_control[0] < 0 || spare_log[0] < 0; }

/* One that cannot be made now is made, or refused, when it is needed. */
void spares_make(void) {
	if (spare_control[0] < 0 && new_control(spare_control) != 0) spare_control[0] = -1;
	if (spare_log[0] < 0 && new_log(spare_log) != 0) spare_log[0] = -1;
}

/* Descriptors on their way into a husk: those made for it are closed here once sent. */
struct passing {
	int fds[HUSK_FDS_MAX + 1];
	bool owned[HUSK_FDS_MAX + 1];
	unsigned count;
	int control, log;
};

static void passing_close(struct passing *p) {
	for (unsigned index = 0; index < p->count; index++) {
		if (p->owned[index]) close(p->fds[index]);
	}
}

/* A log pipe is for the life of an instance: to let go of one may take as long as whoever has its other end likes. */
static int passing_add(struct passing *p, const struct instance *it, const struct stage_fd *entry) {
	int fd = -1;
	bool own = entry->kind != PASS_FILE;
	errno = EINVAL;
	if (entry->kind == PASS_FILE || entry->kind == PASS_TREE) {
		int file = file_descriptor(entry->file);
		errno = EBADF;
		fd = file < 0 || entry->kind == PASS_FILE ? file : clone_tree(file);
	} else if (entry->kind == PASS_CONTROL && p->control < 0) {
		fd = take_pair(spare_control, new_control, &p->control);
	} else if (entry->kind == PASS_LOG && p->log < 0 && it->log.fd < 0) {
		fd = take_pair(spare_log, new_log, &p->log);
	}
	if (fd < 0) return -errno;
	p->owned[p->count] = own;
	p->fds[p->count++] = fd;
	return 0;
}

static void stage_failed(struct instance *it, uint32_t tag, int error, const char *what, uint32_t index) {
	frame_failed(MSG_STAGE, it->id, tag, error, "cannot run a stage: %s (descriptor %u): %s", what, index, strerror(error));
}

void instance_stage(struct instance *it, uint32_t tag, const uint8_t *payload, size_t count) {
	struct stage stage;
	if (count < sizeof stage) return stage_failed(it, tag, EINVAL, "the message is cut short", 0);
	memcpy(&stage, payload, sizeof stage);
	if (stage.fd_count >= HUSK_FDS_MAX || count != sizeof stage + stage.fd_count * sizeof(struct stage_fd)) return stage_failed(it, tag, EINVAL, "the count of descriptors is wrong", stage.fd_count);
	if (it->state != INSTANCE_READY) return stage_failed(it, tag, EBUSY, "its husk is not ready yet", 0);
	if (it->channel.fd < 0) return stage_failed(it, tag, EPIPE, "its husk runs no programs any more", 0);
	if (it->still) return stage_failed(it, tag, EBUSY, "it holds its output", 0);
	if (it->stage_count == STAGES_MAX) return stage_failed(it, tag, EAGAIN, "too many stages wait for this husk", 0);
	int program = file_descriptor(stage.program_file);
	if (program < 0) return stage_failed(it, tag, EBADF, "no such program", stage.program_file);

	struct passing passing = {.fds = {program}, .count = 1, .control = -1, .log = -1};
	struct husk_run run = {.magic = HUSK_RUN_MAGIC, .fd_base = stage.fd_base, .fd_count = stage.fd_count};
	off_t bytes = lseek(program, 0, SEEK_END);
	run.program_bytes = bytes < 0 ? 0 : (uint64_t)bytes;
	int result = 0;
	uint32_t index = 0;
	for (; index < stage.fd_count && result == 0; index++) {
		struct stage_fd entry;
		memcpy(&entry, payload + sizeof stage + index * sizeof entry, sizeof entry);
		result = passing_add(&passing, it, &entry);
	}
	const char *what = "a descriptor cannot be made; was its file opened?";
	if (result == 0) {
		result = send_with_fds(it->channel.fd, &run, sizeof run, passing.fds, passing.count);
		what = "the husk does not take it";
	}
	passing_close(&passing);
	if (result < 0) {
		if (passing.control >= 0) close(passing.control);
		if (passing.log >= 0) close(passing.log);
		return stage_failed(it, tag, -result, what, index);
	}
	it->stage_tags[(it->stage_first + it->stage_count++) % STAGES_MAX] = tag;
	/* Its report, and the close behind it, would take the processor from the function that has just got going. */
	if (stage.flags & STAGE_QUIET) watch_pause(&it->channel);
	if (passing.control >= 0) {
		close_control(it);
		bytes_free(&it->sending);
		watch_open(&it->control, WATCH_CONTROL, passing.control, it);
	}
	if (passing.log >= 0) watch_open(&it->log, WATCH_LOG, passing.log, it);
}

/* ---- limits and figures ---- */

void instance_limits(struct instance *it, uint32_t tag, const char *payload, size_t count) {
	const char *at = payload, *end = payload + count;
	if (count > 0 && end[-1] != '\0') at = end;
	while (at < end) {
		const char *part[3] = {at, "", ""};
		for (int index = 1; index < 3 && at < end; index++) {
			at += strlen(at) + 1;
			if (at < end) part[index] = at;
		}
		at += at < end ? strlen(at) + 1 : 0;
		int result = cgroup_write(&cgroups, part[0], it->slot, part[1], part[2]);
		if (result < 0) frame_failed(MSG_LIMITS, it->id, tag, -result, "cannot write %.64s to %.64s of controller %.16s: %s", part[2], part[1], part[0], strerror(-result));
	}
}

static uint64_t figure(const char *text, const char *name) {
	for (const char *at = text; at != NULL && *at != '\0'; at = strchr(at, '\n'), at = at == NULL ? NULL : at + 1) {
		size_t length = strlen(name);
		if (strncmp(at, name, length) == 0 && at[length] == ' ') return strtoull(at + length, NULL, 10);
	}
	return 0;
}

static uint64_t oom_kills(const struct instance *it) {
	char text[512];
	const char *file = cgroups.unified ? "memory.events" : "memory.oom_control";
	return cgroup_read(&cgroups, cgroups.unified ? "unified" : "memory", it->slot, file, text, sizeof text) > 0 ? figure(text, "oom_kill") : 0;
}

static uint64_t peak_bytes(const struct instance *it) {
	char text[64] = "";
	if (!cgroups.unified) cgroup_read(&cgroups, "memory", it->slot, "memory.max_usage_in_bytes", text, sizeof text);
	else if (it->peak >= 0) text[sizeof text - 1] = '\0', (void)!pread(it->peak, text, sizeof text - 1, 0);
	return strtoull(text, NULL, 10);
}

/* ---- beginning and end ---- */

void instance_cloned(struct instance *it, const struct job_answer *answer, const int fds[3]) {
	it->state = INSTANCE_CLONED;
	it->init_pid = answer->pid;
	it->started_ns = answer->started_ns;
	watch_open(&it->pidfd, WATCH_PIDFD, fds[0], it);
	watch_open(&it->status, WATCH_STATUS, fds[1], it);
	watch_open(&it->channel, WATCH_CHANNEL, fds[2], it);
	if (cgroups.on) {
		it->oom_base = oom_kills(it);
		if (cgroups.unified) {
			/* Since Linux 6.12 a write begins a peak for this descriptor; older kernels report none. */
			char path[64];
			snprintf(path, sizeof path, "h%u/memory.peak", it->slot);
			it->peak = openat(cgroups.controllers[0].dir, path, O_RDWR | O_CLOEXEC);
			if (it->peak >= 0 && write(it->peak, "0", 1) < 0) {
				/* Since the slot was made, by whomever: of this instance it says nothing. */
				close(it->peak);
				it->peak = -1;
			}
		}
	}
	if (it->killed) sys_pidfd_kill(it->pidfd.fd, SIGKILL);
}

/* Returns whether there was one. */
static bool read_status(struct instance *it) {
	struct init_status status;
	struct iovec part = {&status, sizeof status};
	union { struct cmsghdr align; char room[CMSG_SPACE(sizeof(struct ucred))]; } control;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t count = recvmsg(it->status.fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (count < (ssize_t)offsetof(struct init_status, text)) return false;
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	if (status.kind == INIT_READY && head != NULL && head->cmsg_type == SCM_CREDENTIALS) {
		struct ucred credentials;
		memcpy(&credentials, CMSG_DATA(head), sizeof credentials);
		struct husk_ready ready = {.pid = (uint32_t)credentials.pid, .init_pid = (uint32_t)it->init_pid, .us = (uint32_t)((now_ns() - it->started_ns) / 1000)};
		it->state = INSTANCE_READY;
		if (!it->killed) frame_put(MSG_HUSK_READY, it->id, it->husk_tag, &ready, sizeof ready);
	} else if (status.kind == INIT_FAILED) {
		status.text[TEXT_BYTES - 1] = '\0';
		frame_failed(MSG_HUSK, it->id, it->state == INSTANCE_READY ? 0 : it->husk_tag, status.error, "cannot make a sandbox: %s", status.text);
	} else if (status.kind == INIT_ENDED) {
		it->has_end = true;
		it->wait_status = status.wait_status;
	}
	return true;
}

void instance_kill(struct instance *it) {
	it->killed = true;
	if (it->pidfd.fd >= 0) sys_pidfd_kill(it->pidfd.fd, SIGKILL);
}

/* The pidfd of init is ready: it is a zombie, so its namespace is empty and nobody writes any more. */
static void instance_end(struct instance *it) {
	for (int reads = 0; reads < 4 && read_status(it); reads++) {}
	read_reports(it);
	struct husk_report broken = {.magic = HUSK_REPORT_MAGIC, .status = -EPIPE};
	while (it->stage_count > 0) stage_done(it, &broken);
	it->state = INSTANCE_ENDED;
	drain_log(it);
	for (int reads = 0; reads < LAST_READS_MAX && read_control(it); reads++) {}
	int wait_status = 0;
	struct rusage usage = {0};
	wait4(it->init_pid, &wait_status, __WALL, &usage);
	uint64_t kills = cgroups.on ? oom_kills(it) : 0;
	struct exit end = {
		.wait_status = it->has_end ? it->wait_status : (uint32_t)wait_status,
		.oom_kills = (uint32_t)(kills > it->oom_base ? kills - it->oom_base : 0),
		.max_rss_kb = (uint32_t)usage.ru_maxrss,
		.sends = it->sends,
		.peak_bytes = cgroups.on ? peak_bytes(it) : 0,
	};
	memcpy(frame_room(sizeof end), &end, sizeof end);
	frame_end(MSG_EXIT, it->id, 0, it->unread || bytes_used(&it->sending) > 0 ? EXIT_UNREAD : 0, sizeof end);
	if (it->peak >= 0) close(it->peak);
	instance_uffd_close(it);
	paging_gone(it);
	watch_close(&it->pidfd);
	watch_close(&it->status);
	watch_close(&it->channel);
	close_control(it);
	watch_close(&it->log);
	bytes_free(&it->sending);
	instance_gone(it);
}

void instance_stand_still(struct instance *it) {
	it->still = true;
	struct watch *watches[] = {&it->pidfd, &it->status, &it->channel, &it->control, &it->log};
	for (unsigned index = 0; index < sizeof watches / sizeof *watches; index++) watch_pause(watches[index]);
}

/* Who should have stayed out of the epoll set leaves it again at its first event. */
void instance_go_on(struct instance *it) {
	it->still = false;
	struct watch *watches[] = {&it->pidfd, &it->status, &it->channel, &it->control, &it->log};
	for (unsigned index = 0; index < sizeof watches / sizeof *watches; index++) watch_resume(watches[index]);
}

void instance_event(struct instance *it, enum watch_kind kind, uint32_t events) {
	if (kind == WATCH_PIDFD) return instance_end(it);
	if (kind == WATCH_CHANNEL) return read_reports(it);
	if (kind == WATCH_STATUS) {
		/* What init says at its end is read then. */
		if (!read_status(it) || it->state == INSTANCE_READY) watch_pause(&it->status);
		return;
	}
	if (kind == WATCH_CONTROL && (events & EPOLLOUT)) flush_sending(it);
	if (kind == WATCH_CONTROL && !(events & ~(uint32_t)EPOLLOUT)) return;
	if (kind == WATCH_LOG && outbound_beyond(LOG_PAUSE_BYTES)) return watch_pause(&it->log);
	if (outbound_beyond(OUT_PAUSE_BYTES)) return watch_pause(&it->control);
	if (it->channel.paused) read_reports(it);
	/* A reply's first byte is written after the logs that belong to it: what makes this readable is drained behind them. */
	drain_log(it);
	if (kind == WATCH_CONTROL) read_control(it);
}
