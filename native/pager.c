/*
 * The pager: a process of its own beside the keeper, for what waits for disks.
 *
 * Prefetch. readahead(2) submits the reads of each range, in the order given, and returns; a page fault then waits for its own page
 * alone. Ranges that the page cache has are found by cachestat(2) and cost one call, 0.7 us; of a set that was whole some are looked at, in
 * turn. (One call for a whole file looks at each page that is cached of it: 0.8 ms for an interpreter.) What is read is charged to the
 * control group that keeper and pager live in, not to the function that touches it first.
 *
 * Memory. What it fills is told in space.c.
 *
 * The holder. A userfaultfd whose last descriptor closes lets whoever waits for a page read zeros. So the pager shares its descriptor
 * table (CLONE_FILES) with a second process, the holder, which does nothing but wait for its end: what the pager had open, and be
 * it for a moment, stays open until the keeper has ended the functions that depend on it and lets the holder go.
 *
 *   keeper ──fork──▶ holder ──clone(CLONE_FILES)──▶ pager
 *     ▲                │ waits
 *     └──PAGER_LOST────┘
 */
#include "pager.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* What readahead(2) takes in one call is bounded by the device's read_ahead_kb, whose default this is. */
enum { READAHEAD_BYTES = 128 << 10, PAGE = 4096, SAMPLES = 16 };

/* Linux 6.5; by hand, because headers may be older than the kernel. */
#define SYS_CACHESTAT 451
struct cache_range { uint64_t offset, bytes; };
struct cache_state { uint64_t cached, dirty, writeback, evicted, recently_evicted; };

static int keeper_socket;
static struct table files; /* descriptor + 1 by file id */

static int file_of(uint32_t id) { return (int)(intptr_t)table_get(&files, id) - 1; }

static void set_file(uint32_t id, int fd) {
	if (file_of(id) >= 0) close(file_of(id));
	table_put(&files, id, fd < 0 ? NULL : (void *)(intptr_t)(fd + 1));
}

void pager_answer(const struct pager_answer *it) {
	/* Waits for a keeper that is busy; one that is gone takes us along. */
	while (send(keeper_socket, it, sizeof *it, MSG_NOSIGNAL) < 0 && errno == EINTR) {}
}

/* ---- prefetch ---- */

/* Pages of the range that the page cache lacks, or -1: nobody can say. */
static int64_t missing_pages(int fd, const struct prefetch_range *range) {
	struct cache_range asked = {range->offset, range->bytes};
	struct cache_state state = {0};
	if (syscall(SYS_CACHESTAT, fd, &asked, &state, 0) != 0) return -1;
	int64_t pages = (int64_t)((range->offset % PAGE + range->bytes + PAGE - 1) / PAGE), cached = (int64_t)state.cached;
	return pages > cached ? pages - cached : 0;
}

bool seems_cached(const struct prefetch_range *ranges, uint32_t count, int (*descriptor)(uint32_t file)) {
	static uint32_t turn;
	uint32_t step = count / SAMPLES + 1;
	for (uint32_t index = turn++ % step; index < count; index += step) {
		if (missing_pages(descriptor(ranges[index].file), &ranges[index]) != 0) return false;
	}
	return true;
}

/* Sets that were found in the page cache whole: they seem to be, or are looked at range by range again. */
enum { SETS_KNOWN = 64 };
static uint64_t whole_sets[SETS_KNOWN]; /* keys; 0: none */

static uint64_t key_of(const struct prefetch_range *ranges, uint32_t count) {
	uint64_t key = count;
	for (uint32_t index = 0; index < count; index++) {
		const uint64_t words[] = {ranges[index].file, ranges[index].offset, ranges[index].bytes};
		for (int word = 0; word < 3; word++) key = (key ^ words[word]) * 0x9e3779b97f4a7c15u, key ^= key >> 29;
	}
	return key | 1;
}

static int64_t prefetch_range(const struct prefetch_range *range) {
	int fd = file_of(range->file);
	if (fd < 0) return -1;
	if (range->bytes == 0) return 0;
	int64_t missing = missing_pages(fd, range);
	if (missing == 0) return 0;
	for (uint64_t done = 0; done < range->bytes; done += READAHEAD_BYTES) {
		uint64_t rest = range->bytes - done;
		/* A failure costs whoever faults there the wait that it would have had anyway. */
		(void)!readahead(fd, (off64_t)(range->offset + done), rest < READAHEAD_BYTES ? rest : READAHEAD_BYTES);
	}
	return missing;
}

static void prefetch(const struct pager_order *order, const struct prefetch_range *ranges) {
	uint64_t began_ns = now_ns();
	struct pager_answer done = {.kind = PAGER_PREFETCH, .tag = order->tag};
	uint64_t key = key_of(ranges, order->count);
	uint64_t *set = &whole_sets[key / 2 % SETS_KNOWN];
	bool whole = *set == key && seems_cached(ranges, order->count, file_of);
	for (uint32_t index = whole ? order->count : 0; index < order->count; index++) {
		int64_t missing = prefetch_range(&ranges[index]);
		if (missing < 0 || done.prefetched.pages < 0) done.prefetched.pages = -1;
		else done.prefetched.pages += missing;
	}
	*set = done.prefetched.pages == 0 ? key : 0;
	done.prefetched.us = (uint32_t)((now_ns() - began_ns) / 1000);
	pager_answer(&done);
}

/* ---- the process and its holder ---- */

static void tell_trace(const struct pager_order *order) {
	const uint64_t *trace = NULL;
	size_t count = 0;
	struct pager_answer told = {.kind = PAGER_TRACE, .id = order->id, .tag = order->tag};
	int result = space_trace(order->id, &trace, &count);
	int fd = result < 0 ? -1 : memfd_create("thaw-trace", MFD_CLOEXEC);
	if (result == 0 && fd < 0) result = -errno;
	for (size_t done = 0; fd >= 0 && result == 0 && done < count * sizeof *trace;) {
		ssize_t written = write(fd, (const char *)trace + done, count * sizeof *trace - done);
		if (written < 0 && errno != EINTR) result = -errno;
		if (written > 0) done += (size_t)written;
	}
	told.error = -result;
	while (send_with_fds(keeper_socket, &told, sizeof told, &fd, fd >= 0) == -EAGAIN) usleep(1000);
	if (fd >= 0) close(fd);
}

void pager_order(void) {
	static struct {
		struct pager_order order;
		struct prefetch_range ranges[PREFETCH_RANGES_MAX];
	} message;
	int fds[ADOPT_FDS] = {-1, -1, -1, -1, -1, -1};
	unsigned fd_count = ADOPT_FDS;
	ssize_t count = recv_with_fds(keeper_socket, &message, sizeof message, fds, &fd_count, 0);
	if (count < (ssize_t)sizeof message.order) _exit(count == 0 ? 0 : 1);
	switch (message.order.kind) {
	case PAGER_FILE: set_file(message.order.id, fd_count == 1 ? fds[0] : -1); return;
	case PAGER_FORGET: set_file(message.order.id, -1); return;
	case PAGER_PREFETCH: prefetch(&message.order, message.ranges); return;
	case PAGER_ADOPT: space_adopt(message.order.id, fds); return;
	case PAGER_DROP: space_drop(message.order.id); return;
	case PAGER_TRACE: tell_trace(&message.order); return;
	default: errno = EPROTO; die("order %u for the pager", message.order.kind);
	}
}

static void follow_parent(pid_t parent) {
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent) _exit(0);
}

static _Noreturn void serve(pid_t holder) {
	prctl(PR_SET_NAME, "thaw-pager");
	follow_parent(holder);
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event orders = {.events = EPOLLIN, .data.ptr = NULL};
	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, keeper_socket, &orders) != 0) die("epoll_create1");
	space_start(epoll);
	for (;;) space_turn(epoll, -1);
}

_Noreturn void pager_run(int socket) {
	keeper_socket = socket;
	prctl(PR_SET_NAME, "thaw-holder");
	pid_t self = getpid();
	long pid = sys_clone3(&(struct clone_args){.flags = CLONE_FILES, .exit_signal = SIGCHLD});
	if (pid < 0) die("cannot clone the pager; are processes (pids.max) used up?");
	if (pid == 0) serve(self);
	while (waitpid((pid_t)pid, NULL, 0) < 0 && errno == EINTR) {}
	pager_answer(&(struct pager_answer){.kind = PAGER_LOST});
	for (;;) pause();
}
