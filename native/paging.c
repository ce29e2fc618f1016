/*
 * The keeper's side of the pager (pager.c): gives it orders and never waits for it.
 *
 * A file's descriptor travels with the first order that needs it. An order that the pager's socket does not take at once is refused:
 * that happens only when the pager hangs behind a disk with hundreds of them before it.
 *
 * What is sent to an instance may wait for a prefetch, but not long: the pager works on one order at a time, and others' may be large. After
 * HOLD_NS_MAX, about what a read of megabytes costs that the wait shall spare, it goes on as if the disk had been asked.
 *
 * A husk whose loader wants its pages from the pager gives a gate and a userfaultfd. Both go to the pager, and the keeper keeps a
 * duplicate of the latter until the instance has ended.
 *
 * When the pager ends, what it was asked for fails, and the instances that depend on it are killed. Its holder stays until the last of them
 * has ended (pager.c says why), and another pager takes the next orders meanwhile.
 */
#include "pager.h"
#include "instance.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { ORDERS_MAX = 4096, SOCKET_BYTES = 4 << 20, ANSWERS_A_TURN = 64, SHORT_LIVES_MAX = 10, TRACE_BYTES_MAX = 64 << 20 };
static const uint64_t SHORT_LIFE_NS = 100000000, HOLD_NS_MAX = 25000000;

/* One pager with its holder; a former one stays until nobody depends on it. */
struct former {
	pid_t holder;
	uint32_t number;
	unsigned dependents;
	struct former *next;
};

static struct watch pager, holder;
static pid_t holder_pid;
static uint32_t number;				/* of the pager: instances say which one they depend on */
static unsigned dependents;
static struct former *formers;
static struct table known;			/* files that the pager has */
static struct { uint32_t tag, instance; bool awaited; uint64_t ordered_ns; } prefetching[ORDERS_MAX];	/* in order: that is how they are answered */
static unsigned prefetch_first, prefetch_count, holds;
static uint64_t started_ns;
static unsigned short_lives;

void paging_start(void) {
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) die("socketpair");
	int bytes = SOCKET_BYTES;
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
	pid_t keeper = getpid();
	started_ns = now_ns();
	number++;
	dependents = 0;
	holder_pid = fork();
	if (holder_pid < 0) die("cannot fork the pager; are processes (pids.max) used up?");
	if (holder_pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != keeper) _exit(0);
		/* Nothing of the keeper's may stay open in it, above all no other end of a function's socket. */
		if (dup2(pair[1], 3) != 3 || sys_close_range(4, ~0U) != 0) die("cannot close the keeper's descriptors in the pager");
		fcntl(3, F_SETFD, FD_CLOEXEC);
		signal(SIGTERM, SIG_IGN);
		pager_run(3);
	}
	close(pair[1]);
	int pidfd = sys_pidfd_open(holder_pid);
	if (pidfd < 0) die("pidfd_open");
	fcntl(pidfd, F_SETFD, FD_CLOEXEC);
	watch_open(&pager, WATCH_PAGER, pair[0], NULL);
	watch_open(&holder, WATCH_HOLDER, pidfd, NULL);
}

/* The pager dies with its parent, the holder. */
static void end_holder(pid_t pid) {
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

void paging_end(void) {
	for (; formers != NULL; formers = formers->next) end_holder(formers->holder);
	if (holder_pid > 0) end_holder(holder_pid);
	holder_pid = 0;
	watch_close(&pager);
	watch_close(&holder);
}

/* ---- orders ---- */

/* Whoever waits for this order goes on. */
static void let_go(unsigned at) {
	if (prefetching[at].instance == 0) return;
	struct instance *it = table_get(&instances, prefetching[at].instance);
	if (it != NULL) instance_release(it);
	prefetching[at].instance = 0;
	holds--;
}

int paging_late(void) {
	uint64_t now = holds > 0 ? now_ns() : 0;
	for (unsigned index = 0; holds > 0 && index < prefetch_count; index++) {
		unsigned at = (prefetch_first + index) % ORDERS_MAX;
		if (prefetching[at].instance == 0) continue;
		uint64_t until = prefetching[at].ordered_ns + HOLD_NS_MAX;
		if (until > now) return (int)((until - now) / 1000000u) + 1;
		let_go(at);
	}
	return -1;
}

/* The next to be answered: its tag. */
static uint32_t prefetch_take(void) {
	uint32_t tag = prefetching[prefetch_first].tag;
	let_go(prefetch_first);
	prefetch_first = (prefetch_first + 1) % ORDERS_MAX;
	prefetch_count--;
	return tag;
}

void paging_forget(uint32_t file) {
	if (table_get(&known, file) == NULL) return;
	table_put(&known, file, NULL);
	struct pager_order order = {.kind = PAGER_FORGET, .id = file};
	send_with_fds(pager.fd, &order, sizeof order, NULL, 0);
}

/* Whether the pager has that file now. */
static int lend(uint32_t file) {
	if (table_get(&known, file) != NULL) return 0;
	int fd = file_descriptor(file);
	/* The pager says that it does not know it. */
	if (fd < 0) return 0;
	struct pager_order order = {.kind = PAGER_FILE, .id = file};
	int result = send_with_fds(pager.fd, &order, sizeof order, &fd, 1);
	if (result == 0) table_put(&known, file, &known);
	return result;
}

void paging_prefetch(const struct message *head, const uint8_t *payload) {
	struct { struct pager_order order; struct prefetch_range ranges[PREFETCH_RANGES_MAX]; } message;
	uint32_t count = head->bytes / sizeof message.ranges[0];
	int result = count > PREFETCH_RANGES_MAX || head->bytes % sizeof message.ranges[0] != 0 ? -EINVAL : prefetch_count == ORDERS_MAX ? -EAGAIN : 0;
	if (result == 0) memcpy(message.ranges, payload, head->bytes);
	struct instance *waits = result == 0 && head->id != 0 ? table_get(&instances, head->id) : NULL;
	if (waits != NULL && seems_cached(message.ranges, count, file_descriptor)) {
		struct prefetched none = {0};
		return frame_unhurried(MSG_PREFETCHED, 0, head->reserved, &none, sizeof none);
	}
	for (uint32_t index = 0; index < count && result == 0; index++) result = lend(message.ranges[index].file);
	message.order = (struct pager_order){.kind = PAGER_PREFETCH, .tag = head->reserved, .count = count};
	if (result == 0) result = send_with_fds(pager.fd, &message, sizeof message.order + head->bytes, NULL, 0);
	if (result < 0) return frame_failed(MSG_PREFETCH, head->id, head->reserved, -result, "the pager does not take a prefetch of %u ranges: %s", count, strerror(-result));
	unsigned last = (prefetch_first + prefetch_count++) % ORDERS_MAX;
	prefetching[last].tag = head->reserved;
	prefetching[last].awaited = (head->flags & PREFETCH_AWAITED) != 0;
	prefetching[last].instance = waits != NULL ? waits->id : 0;
	if (waits == NULL) return;
	prefetching[last].ordered_ns = now_ns();
	holds++;
	instance_hold(waits);
}

/* ---- instances whose memory the pager fills ---- */

static void unpageable(struct instance *it, int error, const char *what) {
	frame_failed(MSG_PAGED_BY, it->id, 0, error, "%s", what);
	instance_kill(it);
}

_Static_assert(ADOPT_PLAN + PAGED_FILES == ADOPT_FDS && ADOPT_PLAN < ADOPT_PAGES && ADOPT_PAGES < ADOPT_BASE && ADOPT_BASE < ADOPT_SET, "what is adopted");

static void close_plan(struct instance *it) {
	for (int index = 0; index < PAGED_FILES; index++) {
		if (it->paged_files[index] >= 0) close_aside(it->paged_files[index]);
		it->paged_files[index] = -1;
	}
}

/* Its image may be removed before the husk gives its memory: what brings that is kept open from here on. */
void paging_plan(struct instance *it, const struct message *head, const uint8_t *payload) {
	struct paged_by by;
	if (head->bytes != sizeof by) return;
	memcpy(&by, payload, sizeof by);
	const uint32_t files[PAGED_FILES] = {by.plan, by.pages, by.base != 0 ? by.base : by.pages, by.set != 0 ? by.set : by.pages};
	close_plan(it);
	for (int index = 0; index < PAGED_FILES; index++) it->paged_files[index] = fcntl(file_descriptor(files[index]), F_DUPFD_CLOEXEC, 0);
}

static void close_gate(struct instance *it) {
	if (it->gate >= 0) close(it->gate);
	it->gate = -1;
}

void paging_adopt(struct instance *it) {
	int fds[ADOPT_FDS] = {[ADOPT_UFFD] = it->paged_uffd, [ADOPT_GATE] = it->gate};
	memcpy(&fds[ADOPT_PLAN], it->paged_files, sizeof it->paged_files);
	for (int index = 0; index < ADOPT_FDS; index++) {
		if (fds[index] < 0) return unpageable(it, EBADF, "the image was closed before its pages were brought");
	}
	struct pager_order order = {.kind = PAGER_ADOPT, .id = it->id};
	int result = send_with_fds(pager.fd, &order, sizeof order, fds, ADOPT_FDS);
	close_gate(it);
	close_plan(it);
	if (result < 0) return unpageable(it, -result, "the pager takes no more instances");
	it->pager = number;
	dependents++;
}

void paging_trace(struct instance *it, uint32_t tag) {
	struct pager_order order = {.kind = PAGER_TRACE, .id = it->id, .tag = tag};
	int result = it->pager == number ? send_with_fds(pager.fd, &order, sizeof order, NULL, 0) : -ESRCH;
	if (result < 0) frame_failed(MSG_TRACE, it->id, tag, -result, "its pager does not tell: %s", strerror(-result));
}

void paging_gone(struct instance *it) {
	close_gate(it);
	close_plan(it);
	if (it->paged_uffd >= 0) close(it->paged_uffd);
	it->paged_uffd = -1;
	if (it->pager == number && number != 0) {
		struct pager_order order = {.kind = PAGER_DROP, .id = it->id};
		/* One that is lost keeps a few descriptors of a dead memory open until the pager's own end. */
		send_with_fds(pager.fd, &order, sizeof order, NULL, 0);
		dependents--;
	}
	for (struct former **link = &formers; *link != NULL; link = &(*link)->next) {
		struct former *one = *link;
		if (one->number != it->pager || --one->dependents > 0) continue;
		*link = one->next;
		end_holder(one->holder);
		free(one);
		break;
	}
	it->pager = 0;
}

/* ---- answers and the end of a pager ---- */

/* Not yet let go: whoever waits for a page must be dead before the last descriptor of its memory closes. */
static void keep_holder(void) {
	struct former *one = malloc(sizeof *one);
	if (one == NULL) die("out of memory for a pager");
	*one = (struct former){.holder = holder_pid, .number = number, .dependents = dependents, .next = formers};
	formers = one;
	holder_pid = 0;
}

static void lost(void) {
	short_lives = now_ns() - started_ns < SHORT_LIFE_NS ? short_lives + 1 : 0;
	if (short_lives > SHORT_LIVES_MAX) die("the pager ends as soon as it is started; its last words are above");
	/* Freeing what it knew is as good as asking it to forget. */
	free(known.slots);
	known = (struct table){0};
	while (prefetch_count > 0) frame_failed(MSG_PREFETCH, 0, prefetch_take(), EPIPE, "the pager ended");
	watch_close(&pager);
	watch_close(&holder);
	uint32_t ended = number;
	if (dependents > 0) keep_holder();
	else end_holder(holder_pid);
	paging_start();
	for (size_t at = 0; at < instances.cap; at++) {
		struct instance *it = instances.slots[at].value;
		if (it != NULL && it->pager == ended) unpageable(it, EPIPE, "the pager ended, which brings its pages");
	}
}

static void told_trace(const struct pager_answer *answer, int fd) {
	struct stat info;
	int error = answer->error != 0 ? answer->error : fd < 0 || fstat(fd, &info) != 0 ? EBADF : info.st_size > TRACE_BYTES_MAX ? EFBIG : 0;
	if (error != 0) {
		frame_failed(MSG_TRACE, answer->id, answer->tag, error, "its pager does not tell: %s", strerror(error));
	} else {
		uint8_t *room = frame_room((size_t)info.st_size);
		ssize_t count = pread(fd, room, (size_t)info.st_size, 0);
		frame_end(MSG_TRACED, answer->id, answer->tag, 0, count < 0 ? 0 : (size_t)count);
	}
	if (fd >= 0) close(fd);
}

static bool take_answer(void) {
	struct pager_answer answer;
	int fd = -1;
	unsigned fd_count = 1;
	ssize_t count = recv_with_fds(pager.fd, &answer, sizeof answer, &fd, &fd_count, MSG_DONTWAIT);
	if (count == -EAGAIN) return false;
	if (count != (ssize_t)sizeof answer || answer.kind == PAGER_LOST) return lost(), false;
	if (answer.kind == PAGER_TRACE) return told_trace(&answer, fd), true;
	if (answer.kind == PAGER_PREFETCH && prefetch_count > 0) {
		bool awaited = prefetching[prefetch_first].awaited;
		(awaited ? frame_put : frame_unhurried)(MSG_PREFETCHED, 0, prefetch_take(), &answer.prefetched, sizeof answer.prefetched);
	}
	if (answer.kind == PAGER_INSTALLED) frame_put(MSG_PAGED, answer.id, 0, &answer.report, sizeof answer.report);
	if (answer.kind == PAGER_FAILED) {
		struct instance *it = table_get(&instances, answer.id);
		answer.text[sizeof answer.text - 1] = '\0';
		if (it != NULL && it->pager == number) unpageable(it, answer.error, answer.text);
	}
	return true;
}

void paging_event(int watch_kind) {
	if (watch_kind == WATCH_HOLDER) return lost();
	for (int answers = 0; answers < ANSWERS_A_TURN && take_answer(); answers++) {}
}
