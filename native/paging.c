/*
 * The keeper's side of the pager (pager.c): gives it orders and never waits for it.
 *
 * A file's descriptor travels with the first order that needs it. An order that the pager's socket does not take at once is refused:
 * that happens only when the pager hangs behind a disk with hundreds of them before it.
 *
 * When the pager ends, what it was asked for fails and another one is started (docs/design/pager.md).
 */
#include "pager.h"
#include "instance.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { ORDERS_MAX = 4096, SOCKET_BYTES = 4 << 20, ANSWERS_A_TURN = 64, SHORT_LIVES_MAX = 10 };
static const uint64_t SHORT_LIFE_NS = 100000000;

static struct watch pager, holder;
static pid_t holder_pid;
static struct table known;			/* files that the pager has */
static uint32_t prefetching[ORDERS_MAX];	/* tags, in order: that is how they are answered */
static unsigned prefetch_first, prefetch_count;
static uint64_t started_ns;
static unsigned short_lives;

void paging_start(void) {
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) die("socketpair");
	int bytes = SOCKET_BYTES;
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
	pid_t keeper = getpid();
	started_ns = now_ns();
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

void paging_end(void) {
	if (holder_pid <= 0) return;
	/* The pager dies with its parent, the holder. */
	kill(holder_pid, SIGKILL);
	waitpid(holder_pid, NULL, 0);
	holder_pid = 0;
	watch_close(&pager);
	watch_close(&holder);
}

/* ---- orders ---- */

static uint32_t prefetch_take(void) {
	uint32_t tag = prefetching[prefetch_first];
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
	if (fd < 0) return -EBADF;
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
	for (uint32_t index = 0; index < count && result == 0; index++) result = lend(message.ranges[index].file);
	message.order = (struct pager_order){.kind = PAGER_PREFETCH, .tag = head->reserved, .count = count};
	if (result == 0) result = send_with_fds(pager.fd, &message, sizeof message.order + head->bytes, NULL, 0);
	if (result < 0) return frame_failed(MSG_PREFETCH, head->id, head->reserved, -result, "the pager does not take a prefetch of %u ranges: %s", count, strerror(-result));
	prefetching[(prefetch_first + prefetch_count++) % ORDERS_MAX] = head->reserved;
}

/* ---- answers and the end of a pager ---- */

static void lost(void) {
	short_lives = now_ns() - started_ns < SHORT_LIFE_NS ? short_lives + 1 : 0;
	if (short_lives > SHORT_LIVES_MAX) die("the pager ends as soon as it is started; its last words are above");
	/* Freeing what it knew is as good as asking it to forget. */
	free(known.slots);
	known = (struct table){0};
	while (prefetch_count > 0) frame_failed(MSG_PREFETCH, 0, prefetch_take(), EPIPE, "the pager ended");
	paging_end();
	paging_start();
}

static bool take_answer(void) {
	struct pager_answer answer;
	unsigned none = 0;
	ssize_t count = recv_with_fds(pager.fd, &answer, sizeof answer, NULL, &none, MSG_DONTWAIT);
	if (count == -EAGAIN) return false;
	if (count != (ssize_t)sizeof answer || answer.kind == PAGER_LOST) return lost(), false;
	if (answer.kind == PAGER_PREFETCH && prefetch_count > 0) frame_put(MSG_PREFETCHED, 0, prefetch_take(), &answer.prefetched, sizeof answer.prefetched);
	return true;
}

void paging_event(int watch_kind) {
	if (watch_kind == WATCH_HOLDER) return lost();
	for (int answers = 0; answers < ANSWERS_A_TURN && take_answer(); answers++) {}
}
