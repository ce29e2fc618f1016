/*
 * The keeper: one privileged process beside each server. It makes sandboxes, keeps descriptors, starts programs
 * in husks, relays bytes and reaps. It decides nothing; docs/design/keeper.md has the protocol.
 *
 * One thread and one epoll set (others stand by: relief.c). A turn of the loop takes whatever is ready, appends what the server shall hear to
 * one buffer, and writes it once. All that may take long is a job for the builder process (builder.c): helpers first, then
 * templates and husks, two at a time in its socket and the rest queued here. `reserved` of a request comes
 * back in its answer, so that the server can match them; FAILED says in `flags` which kind of request failed.
 *
 * The end: descriptor 3 closes (or SIGTERM) → every sandbox is killed, the builder removes the cgroups, exit. If the keeper is
 * killed instead, the kernel kills every init, helper and the builder (PR_SET_PDEATHSIG).
 */
#include "instance.h"
#include "pager.h"

#include <linux/close_range.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { SERVER_FD = 3, EVENTS_MAX = 64, QUEUE_MAX = 1 << 16, END_WAIT_MS = 10000, SPARE_PAUSE_MS = 2, SERVER_BUFFER_BYTES = 4 << 20, PARENT_STACK_BYTES = 256 << 10 };

struct helper {
	uint32_t id, tag;
	pid_t pid;
	bool too_much;
	struct watch output, pidfd;
	struct bytes text;
	struct helper *next;
};

struct queued {
	struct job job;
	uint32_t tag;
	int payload;
	int lent[HELPER_FDS_MAX]; /* a helper's descriptors */
	unsigned lent_count;
	bool terminated;
	struct queued *next;
};
struct queue { struct queued *first, **last; };

struct cgroups cgroups;
static int epoll_fd;
static struct watch server, builder, term;
static struct bytes inbound;
struct table instances;
static struct helper *helpers, *dead_helpers;
static struct instance *dead;
static struct queue urgent = {.last = &urgent.first}, ordinary = {.last = &ordinary.first};
static struct queued *at_builder[BUILDER_DEPTH];
static unsigned queued_count, at_builder_count, helper_count;
static uint32_t *free_slots, free_slot_count, free_slot_cap, slots_made;
static int *slot_networks;
static pid_t builder_pid;
static bool any_paused, server_gone, terminated;
static pid_t own_pid;

/* ---- descriptors in the epoll set ---- */

static void watch_control(struct watch *w, int operation, uint32_t events) {
	struct epoll_event event = {.events = events, .data.ptr = w};
	if (epoll_ctl(epoll_fd, operation, w->fd, &event) != 0) die("epoll_ctl on descriptor %d; is fs.epoll.max_user_watches reached?", w->fd);
}

void watch_open(struct watch *w, enum watch_kind kind, int fd, void *owner) {
	*w = (struct watch){.fd = fd, .kind = kind, .owner = owner};
	watch_control(w, EPOLL_CTL_ADD, EPOLLIN);
}

void watch_events(struct watch *w, uint32_t events) {
	if (w->fd >= 0 && !w->paused) watch_control(w, EPOLL_CTL_MOD, events);
}

/* Taken out, not only masked: a hang-up is reported whatever the mask. */
void watch_pause(struct watch *w) {
	if (w->fd < 0 || w->paused) return;
	watch_control(w, EPOLL_CTL_DEL, 0);
	w->paused = any_paused = true;
}

void watch_resume(struct watch *w) {
	if (w->fd < 0 || !w->paused) return;
	w->paused = false;
	watch_control(w, EPOLL_CTL_ADD, w->kind == WATCH_CONTROL ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* Closing alone does not end the watch while the builder still holds its copy of what it has just sent. */
int watch_take(struct watch *w) {
	int fd = w->fd;
	if (fd >= 0 && !w->paused) watch_control(w, EPOLL_CTL_DEL, 0);
	w->fd = -1;
	return fd;
}

void watch_close(struct watch *w) {
	int fd = watch_take(w);
	if (fd >= 0) close(fd);
}

bool outbound_beyond(size_t bytes) { return bytes_used(&outbound) > bytes; }

static void resume_all(void) {
	any_paused = false;
	for (size_t at = 0; at < instances.cap; at++) {
		struct instance *it = instances.slots[at].value;
		if (it == NULL || it->still) continue;
		watch_resume(&it->control);
		watch_resume(&it->log);
	}
}

/* ---- to the server ---- */

static void flush_server(void) {
	static bool waiting;
	while (!server_gone && bytes_used(&outbound) > 0) {
		ssize_t count = send(SERVER_FD, outbound.data + outbound.start, bytes_used(&outbound), MSG_DONTWAIT | MSG_NOSIGNAL);
		if (count < 0 && errno == EINTR) continue;
		if (count < 0 && errno == EAGAIN) break;
		if (count < 0) server_gone = true;
		else bytes_take(&outbound, (size_t)count);
	}
	bool wait = bytes_used(&outbound) > 0 && !server_gone;
	if (wait != waiting) watch_events(&server, wait ? EPOLLIN | EPOLLOUT : EPOLLIN);
	waiting = wait;
	if (any_paused && !outbound_beyond(LOG_PAUSE_BYTES)) resume_all();
}

/* ---- jobs for the builder ---- */

static struct queued *queue_job(struct queue *queue, const struct job *job, const struct message *head, const uint8_t *payload, size_t bytes) {
	int payload_fd = payload == NULL ? -1 : sealed_memfd("thaw-job", payload, bytes, false);
	struct queued *item = queued_count < QUEUE_MAX && (payload == NULL || payload_fd >= 0) ? malloc(sizeof *item) : NULL;
	if (item == NULL) {
		if (payload_fd >= 0) close(payload_fd);
		frame_failed(head->type, head->id, head->reserved, EAGAIN, "the builder's queue is full or memory is out");
		return NULL;
	}
	*item = (struct queued){.job = *job, .tag = head->reserved, .payload = payload_fd};
	*queue->last = item;
	queue->last = &item->next;
	queued_count++;
	return item;
}

static struct queued *queue_take(struct queue *queue) {
	struct queued *item = queue->first;
	if (item == NULL) return NULL;
	queue->first = item->next;
	if (queue->first == NULL) queue->last = &queue->first;
	queued_count--;
	return item;
}

static void queued_free(struct queued *item) {
	if (item->payload >= 0) close(item->payload);
	for (unsigned index = 0; index < item->lent_count; index++) close(item->lent[index]);
	free(item);
}

static uint32_t take_slot(bool *reused) {
	*reused = free_slot_count > 0;
	if (*reused) return free_slots[--free_slot_count];
	if (slots_made % 64 == 0) {
		slot_networks = realloc(slot_networks, (slots_made + 64) * sizeof *slot_networks);
		if (slot_networks == NULL) die("out of memory for %u cgroups; lower the number of instances", slots_made);
	}
	slot_networks[slots_made] = -1;
	return slots_made++;
}

static void give_slot(uint32_t slot) {
	if (free_slot_count == free_slot_cap) {
		free_slot_cap = free_slot_cap == 0 ? 64 : free_slot_cap * 2;
		free_slots = realloc(free_slots, free_slot_cap * sizeof *free_slots);
		if (free_slots == NULL) die("out of memory for %u cgroups; lower the number of instances", free_slot_cap);
	}
	free_slots[free_slot_count++] = slot;
}

static void forget_instance(struct instance *it) {
	table_put(&instances, it->id, NULL);
	it->next_dead = dead;
	dead = it;
}

void instance_gone(struct instance *it) {
	give_slot(it->slot);
	forget_instance(it);
}

/* A husk that was killed before its turn came. */
static bool cancelled(struct queued *item) {
	if (item->job.kind != JOB_HUSK) return false;
	struct instance *it = table_get(&instances, item->job.id);
	if (it == NULL || !it->killed) return false;
	struct exit end = {.wait_status = SIGKILL};
	frame_put(MSG_EXIT, it->id, 0, &end, sizeof end);
	forget_instance(it);
	return true;
}

/* Its socket is closed or closing: how it ended is for whoever reads the log. */
static _Noreturn void builder_ended(void) {
	int status = 0;
	waitpid(builder_pid, &status, 0);
	errno = 0;
	if (WIFSIGNALED(status)) die("the builder was killed by signal %d", WTERMSIG(status));
	die("the builder ended; its last words are above");
}

static void feed_builder(void) {
	while (at_builder_count < BUILDER_DEPTH) {
		struct queued *item = queue_take(&urgent);
		if (item == NULL) item = queue_take(&ordinary);
		if (item == NULL) return;
		if (cancelled(item)) {
			queued_free(item);
			continue;
		}
		int lent[1 + HELPER_FDS_MAX] = {item->payload};
		if (item->job.kind == JOB_HUSK) {
			struct instance *it = table_get(&instances, item->job.id);
			bool reused;
			it->slot = item->job.slot = take_slot(&reused);
			item->job.reused = reused;
			lent[0] = slot_networks[it->slot];
		}
		memcpy(lent + 1, item->lent, sizeof item->lent);
		int error = -send_with_fds(builder.fd, &item->job, sizeof item->job, lent, lent[0] < 0 ? 0 : 1 + item->lent_count);
		if (error == EPIPE || error == ECONNRESET) builder_ended();
		if (error != 0) {
			errno = error;
			die("the builder cannot be asked");
		}
		at_builder[at_builder_count++] = item;
	}
}

static void husk_started(struct instance *it, const struct job_answer *answer, const int *fds, unsigned fd_count) {
	if (fd_count == 4) {
		if (slot_networks[it->slot] >= 0) close(slot_networks[it->slot]);
		slot_networks[it->slot] = fds[3];
	}
	instance_cloned(it, answer, fds);
}

static void helper_started(const struct queued *item, const struct job_answer *answer, const int *fds) {
	struct helper *it = calloc(1, sizeof *it);
	if (it == NULL) die("out of memory for a helper");
	it->id = item->job.id;
	it->tag = item->tag;
	it->pid = answer->pid;
	watch_open(&it->pidfd, WATCH_HELPER_PIDFD, fds[0], it);
	fcntl(fds[1], F_SETFL, O_NONBLOCK);
	watch_open(&it->output, WATCH_HELPER_OUTPUT, fds[1], it);
	it->next = helpers;
	helpers = it;
	if (item->terminated) sys_pidfd_kill(it->pidfd.fd, SIGTERM);
}

static void job_failed(const struct queued *item, const struct job_answer *answer, const int *fds, unsigned fd_count) {
	static const uint16_t types[] = {[JOB_TEMPLATE] = MSG_TEMPLATE, [JOB_CGROUPS] = MSG_CGROUPS, [JOB_HUSK] = MSG_HUSK, [JOB_HELPER] = MSG_HELPER};
	if (answer->pid > 0) wait4(answer->pid, NULL, __WALL, NULL);
	for (unsigned index = 0; index < fd_count; index++) close(fds[index]);
	frame_failed(types[item->job.kind], item->job.id, item->tag, answer->error, "%s", answer->text);
	if (item->job.kind == JOB_HELPER) helper_count--;
	if (item->job.kind != JOB_HUSK) return;
	struct instance *it = table_get(&instances, item->job.id);
	give_slot(it->slot);
	forget_instance(it);
}

/* With which an answer of the builder comes, at least. */
static unsigned fds_due(unsigned kind) {
	return kind == JOB_HUSK ? 3 : kind == JOB_HELPER ? 2 : 0;
}

/* One answer of the builder; false when none is there. */
static bool builder_answer(void) {
	struct job_answer answer = {0};
	int fds[4];
	unsigned fd_count = 4;
	ssize_t count = recv_with_fds(builder.fd, &answer, sizeof answer, fds, &fd_count, MSG_DONTWAIT);
	if (count == -EAGAIN) return false;
	if (count == 0 || count == -ECONNRESET) builder_ended();
	if (count < (ssize_t)offsetof(struct job_answer, text) || at_builder_count == 0) die("the builder answers what nobody asked");
	struct queued *item = at_builder[0];
	at_builder_count--;
	memmove(at_builder, at_builder + 1, at_builder_count * sizeof *at_builder);
	answer.text[TEXT_BYTES - 1] = '\0';
	if (answer.error == 0 && fd_count < fds_due(item->job.kind)) {
		/* The kernel has cut them off: nothing can be watched, and nobody would end it. */
		answer.error = EMFILE;
		snprintf(answer.text, sizeof answer.text, "the keeper has no descriptors left");
		kill(answer.pid, SIGKILL);
	}
	if (answer.error != 0) job_failed(item, &answer, fds, fd_count);
	else if (item->job.kind == JOB_HUSK) husk_started(table_get(&instances, item->job.id), &answer, fds, fd_count);
	else if (item->job.kind == JOB_HELPER) helper_started(item, &answer, fds);
	else frame_put(MSG_OK, item->job.id, item->tag, NULL, 0);
	queued_free(item);
	return true;
}

/* ---- helpers ---- */

static bool read_helper(struct helper *it) {
	if (it->output.fd < 0) return false;
	ssize_t count = read(it->output.fd, bytes_room(&it->text, READ_BYTES), READ_BYTES);
	if (count > 0) it->text.end += (size_t)count;
	else if (count == 0 || (errno != EAGAIN && errno != EINTR)) watch_close(&it->output);
	if (bytes_used(&it->text) > HELPER_OUTPUT_MAX && !it->too_much) {
		it->too_much = true;
		watch_close(&it->output);
		sys_pidfd_kill(it->pidfd.fd, SIGKILL);
	}
	return count > 0;
}

static void helper_end(struct helper *it) {
	while (read_helper(it)) {}
	int wait_status = 0;
	wait4(it->pid, &wait_status, __WALL, NULL);
	if (it->too_much) {
		frame_failed(MSG_HELPER, it->id, it->tag, E2BIG, "a helper wrote more than %d bytes and was killed", HELPER_OUTPUT_MAX);
	} else {
		uint32_t status = (uint32_t)wait_status;
		size_t bytes = bytes_used(&it->text);
		uint8_t *room = frame_room(sizeof status + bytes);
		memcpy(room, &status, sizeof status);
		if (bytes > 0) memcpy(room + sizeof status, it->text.data + it->text.start, bytes);
		frame_end(MSG_HELPER_DONE, it->id, it->tag, 0, sizeof status + bytes);
	}
	watch_close(&it->output);
	watch_close(&it->pidfd);
	bytes_free(&it->text);
	struct helper **link = &helpers;
	while (*link != it) link = &(*link)->next;
	*link = it->next;
	helper_count--;
	/* An event of its other descriptor may lie behind this one in the same turn. */
	it->next = dead_helpers;
	dead_helpers = it;
}

/* Whether it runs already or waits for its turn. One that has ended needs nothing. */
static void helper_term(uint32_t tag) {
	for (struct helper *it = helpers; it != NULL; it = it->next)
		if (it->tag == tag) sys_pidfd_kill(it->pidfd.fd, SIGTERM);
	for (unsigned index = 0; index < at_builder_count; index++)
		if (at_builder[index]->job.kind == JOB_HELPER && at_builder[index]->tag == tag) at_builder[index]->terminated = true;
	for (struct queued *item = urgent.first; item != NULL; item = item->next)
		if (item->job.kind == JOB_HELPER && item->tag == tag) item->terminated = true;
}

/* ---- from the server ---- */

static void start_helper(const struct message *head, const uint8_t *payload) {
	uint32_t count = head->flags, files_at[HELPER_FDS_MAX] = {0};
	if (helper_count == HELPERS_MAX) return frame_failed(MSG_HELPER, head->id, head->reserved, EAGAIN, "%d helpers run already", HELPERS_MAX);
	if (count > HELPER_FDS_MAX || head->bytes < count * sizeof *files_at) return frame_failed(MSG_HELPER, head->id, head->reserved, EINVAL, "the count of descriptors is wrong");
	memcpy(files_at, payload, count * sizeof *files_at);
	/* Copies: the file may be closed before its turn comes. */
	int lent[HELPER_FDS_MAX];
	unsigned opened = 0;
	while (opened < count && (lent[opened] = fcntl(file_descriptor(files_at[opened]), F_DUPFD_CLOEXEC, 3)) >= 0) opened++;
	size_t skip = count * sizeof *files_at;
	struct queued *item = NULL;
	if (opened < count) frame_failed(MSG_HELPER, head->id, head->reserved, EBADF, "no file %u", files_at[opened]);
	else item = queue_job(&urgent, &(struct job){.kind = JOB_HELPER, .id = head->id}, head, payload + skip, head->bytes - skip);
	if (item == NULL) {
		while (opened > 0) close(lent[--opened]);
		return;
	}
	memcpy(item->lent, lent, opened * sizeof *lent);
	item->lent_count = opened;
	helper_count++;
}

static void make_husk(const struct message *head, const uint8_t *payload) {
	struct job job = {.kind = JOB_HUSK, .id = head->id};
	if (head->bytes != sizeof job.make) return frame_failed(MSG_HUSK, head->id, head->reserved, EINVAL, "a husk_make has %zu bytes", sizeof job.make);
	if (table_get(&instances, head->id) != NULL) return frame_failed(MSG_HUSK, head->id, head->reserved, EEXIST, "instance %u exists already", head->id);
	memcpy(&job.make, payload, sizeof job.make);
	if (queue_job(&ordinary, &job, head, NULL, 0) == NULL) return;
	struct instance *it = calloc(1, sizeof *it);
	if (it == NULL) die("out of memory for an instance");
	it->id = head->id;
	it->husk_tag = head->reserved;
	it->pidfd.fd = it->status.fd = it->channel.fd = it->control.fd = it->log.fd = it->peak = it->uffd = it->gate = it->paged_uffd = -1;
	for (int index = 0; index < PAGED_FILES; index++) it->paged_files[index] = -1;
	table_put(&instances, head->id, it);
}

static void set_cgroups(const struct message *head, const uint8_t *payload) {
	char text[TEXT_BYTES];
	if (cgroups.on) return frame_failed(MSG_CGROUPS, head->id, head->reserved, EALREADY, "the cgroup parents are set once");
	int result = cgroups_open(&cgroups, (const char *)payload, head->bytes, text);
	if (result < 0) return frame_failed(MSG_CGROUPS, head->id, head->reserved, -result, "%s", text);
	queue_job(&urgent, &(struct job){.kind = JOB_CGROUPS, .id = head->id}, head, payload, head->bytes);
}

/* The kernel walks the page tables for it, under the lock of that memory. */
static void tell_memory(const struct message *head, const uint8_t *payload) {
	char path[64], text[4096];
	uint32_t pid;
	if (head->bytes != sizeof pid) return frame_failed(MSG_MEMORY, head->id, head->reserved, EINVAL, "a pid has %zu bytes", sizeof pid);
	memcpy(&pid, payload, sizeof pid);
	snprintf(path, sizeof path, "/proc/%u/smaps_rollup", pid);
	call_begins(NULL);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t count = fd < 0 ? -1 : read(fd, text, sizeof text);
	int error = errno;
	if (fd >= 0) close(fd);
	call_ends(NULL);
	if (count <= 0) return frame_failed(MSG_MEMORY, head->id, head->reserved, count < 0 ? error : ESRCH, "%s: %s", path, strerror(count < 0 ? error : ESRCH));
	memcpy(frame_room((size_t)count), text, (size_t)count);
	frame_end(MSG_MEMORY_TOLD, head->id, head->reserved, 0, (size_t)count);
}

static bool instance_message(uint16_t type) {
	return (type >= MSG_STAGE && type <= MSG_KILL) || type == MSG_UFFD_CLOSE || type == MSG_PAGED_BY || type == MSG_TRACE;
}

/*
 * One with a tag is answered: whether it lies in the function's socket, or behind what does. Nobody does anything about that before the function says
 * something, or ends.
 */
static void send_bytes(const struct message *head, struct instance *it, const uint8_t *payload) {
	int result = it == NULL ? -EPIPE : instance_send(it, payload, head->bytes);
	if (it != NULL) it->sends++;
	if (head->reserved == 0) return;
	if (result == 0) frame_unhurried(MSG_OK, head->id, head->reserved, NULL, 0);
	else frame_failed(MSG_SEND, head->id, head->reserved, -result, "nobody is left to read it");
}

/* Answered when the memory is watched no more: a helper that comes behind may be started sooner. */
static void let_go(const struct message *head, struct instance *it) {
	if (it != NULL) instance_uffd_let_go(it);
	frame_put(MSG_OK, head->id, head->reserved, NULL, 0);
}

static void dispatch(const struct message *head, const uint8_t *payload) {
	struct instance *it = instance_message(head->type) ? table_get(&instances, head->id) : NULL;
	switch (head->type) {
	case MSG_TEMPLATE: queue_job(&ordinary, &(struct job){.kind = JOB_TEMPLATE, .id = head->id}, head, payload, head->bytes); return;
	case MSG_CGROUPS: return set_cgroups(head, payload);
	case MSG_FILE_OPEN: return file_open(head, (const char *)payload);
	case MSG_FILE_BYTES: return file_bytes(head, payload);
	case MSG_FILE_CLOSE: return file_close(head->id);
	case MSG_HUSK: return make_husk(head, payload);
	case MSG_FILE_TEMP: return file_temp(head, (const char *)payload);
	case MSG_HELPER: return start_helper(head, payload);
	case MSG_HELPER_TERM: return helper_term(head->id);
	case MSG_STAGE: if (it != NULL) instance_stage(it, head->reserved, payload, head->bytes); return;
	case MSG_SEND: return send_bytes(head, it, payload);
	case MSG_LIMITS: if (it != NULL) instance_limits(it, head->reserved, (const char *)payload, head->bytes); return;
	case MSG_KILL: if (it != NULL) instance_kill(it); return;
	case MSG_PREFETCH: return paging_prefetch(head, payload);
	case MSG_UFFD_CLOSE: return let_go(head, it);
	case MSG_MEMORY: return tell_memory(head, payload);
	case MSG_PAGED_BY: if (it != NULL) paging_plan(it, head, payload); return;
	case MSG_TRACE: if (it != NULL) paging_trace(it, head->reserved); return;
	default: errno = EPROTO; die("message of type %u from the server; do both come from the same build?", head->type);
	}
}

/* Those in which a function may have this thread wait (relief.c): what comes behind them may be another's to read then. */
static bool may_take_long(uint16_t type) { return type == MSG_FILE_OPEN || type == MSG_UFFD_CLOSE || type == MSG_MEMORY; }

/* Whether this thread is to go on. */
static bool dispatch_taken(const struct message *head) {
	uint8_t payload[FILE_OPEN_BYTES_MAX];
	bool fits = head->bytes <= sizeof payload;
	if (fits) memcpy(payload, inbound.data + inbound.start + sizeof *head, head->bytes);
	bytes_take(&inbound, sizeof *head + head->bytes);
	if (fits) dispatch(head, payload);
	else frame_failed(head->type, head->id, head->reserved, ENAMETOOLONG, "it has %u bytes", head->bytes);
	return in_charge();
}

/* What has come of whole messages. Whoever takes charge may find some that another thread has read. */
static void take_messages(void) {
	struct message head;
	while (bytes_used(&inbound) >= sizeof head) {
		memcpy(&head, inbound.data + inbound.start, sizeof head);
		if (head.bytes > MESSAGE_BYTES_MAX) {
			errno = EMSGSIZE;
			die("message of %u bytes from the server", head.bytes);
		}
		if (bytes_used(&inbound) - sizeof head < head.bytes) return;
		if (may_take_long(head.type)) {
			if (!dispatch_taken(&head)) return;
			continue;
		}
		dispatch(&head, inbound.data + inbound.start + sizeof head);
		bytes_take(&inbound, sizeof head + head.bytes);
	}
}

static void read_server(void) {
	struct message head;
	size_t wanted = READ_BYTES;
	if (bytes_used(&inbound) >= sizeof head) {
		memcpy(&head, inbound.data + inbound.start, sizeof head);
		size_t rest = sizeof head + head.bytes - bytes_used(&inbound);
		if (rest > wanted) wanted = rest;
	}
	ssize_t count = recv(SERVER_FD, bytes_room(&inbound, wanted), wanted, MSG_DONTWAIT);
	if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) server_gone = true;
	if (count <= 0) return;
	inbound.end += (size_t)count;
	take_messages();
}

/* ---- the loop and the end ---- */

static void handle(struct watch *w, uint32_t events) {
	if (w->fd < 0 || w->paused) return;
	switch (w->kind) {
	case WATCH_SERVER: if (events & ~(uint32_t)EPOLLOUT) read_server(); return;
	case WATCH_BUILDER: builder_answer(); return;
	case WATCH_TERM: terminated = true; return;
	case WATCH_HELPER_OUTPUT: read_helper(w->owner); return;
	case WATCH_HELPER_PIDFD: helper_end(w->owner); return;
	case WATCH_PAGER: case WATCH_HOLDER: paging_event(w->kind); return;
	default: instance_event(w->owner, w->kind, events);
	}
}

static void free_dead(void) {
	closers_reap();
	while (dead != NULL) {
		struct instance *it = dead;
		dead = it->next_dead;
		free(it);
	}
	while (dead_helpers != NULL) {
		struct helper *it = dead_helpers;
		dead_helpers = it->next;
		free(it);
	}
}

static void wait_readable(int fd, uint64_t deadline_ns) {
	struct pollfd one = {.fd = fd, .events = POLLIN};
	uint64_t now = now_ns();
	if (now < deadline_ns) poll(&one, 1, (int)((deadline_ns - now) / 1000000u));
}

static void kill_all(uint64_t deadline_ns) {
	for (size_t at = 0; at < instances.cap; at++) {
		struct instance *it = instances.slots[at].value;
		if (it != NULL) instance_kill(it);
	}
	for (size_t at = 0; at < instances.cap; at++) {
		struct instance *it = instances.slots[at].value;
		if (it == NULL || it->pidfd.fd < 0) continue;
		wait_readable(it->pidfd.fd, deadline_ns);
		waitpid(it->init_pid, NULL, WNOHANG | __WALL);
	}
	for (struct helper *it = helpers; it != NULL; it = it->next) {
		sys_pidfd_kill(it->pidfd.fd, SIGKILL);
		wait_readable(it->pidfd.fd, deadline_ns);
		waitpid(it->pid, NULL, WNOHANG);
	}
	closers_end(deadline_ns);
	/* Last: what waits for a page of it is gone. */
	paging_end();
}

static void end_everything(void) {
	uint64_t deadline_ns = now_ns() + (uint64_t)END_WAIT_MS * 1000000u;
	/* What the builder is at work on must come back, or it could not be killed. */
	while (at_builder_count > 0 && now_ns() < deadline_ns) {
		wait_readable(builder.fd, deadline_ns);
		builder_answer();
	}
	kill_all(deadline_ns);
	struct job quit = {.kind = JOB_QUIT};
	if (send_with_fds(builder.fd, &quit, sizeof quit, NULL, 0) == 0) {
		wait_readable(builder.fd, deadline_ns);
		int pidfd = sys_pidfd_open(builder_pid);
		if (pidfd >= 0) wait_readable(pidfd, deadline_ns);
	}
	waitpid(builder_pid, NULL, WNOHANG);
}

/* Of a thread that is not in charge any more: what else there was is seen by the one that is, which may not wake for what this one leaves. */
static void finish_turn(void) {
	feed_builder();
	flush_server();
}

/* The loop of the thread in charge. What the one before has left is done first. */
static void turns(void) {
	struct epoll_event events[EVENTS_MAX];
	take_messages();
	while (!server_gone && !terminated) {
		if (!in_charge()) return finish_turn();
		feed_builder();
		free_dead();
		if (!outbound_waits) flush_server();
		int wait_ms = paging_late();
		if (spares_lack() || outbound_waits) wait_ms = SPARE_PAUSE_MS;
		house_leave();
		int count = epoll_wait(epoll_fd, events, EVENTS_MAX, wait_ms);
		house_enter();
		if (count < 0 && errno != EINTR) die("epoll_wait");
		if (count == 0) spares_make(), outbound_waits = false;
		for (int index = 0; index < count && in_charge(); index++) handle(events[index].data.ptr, events[index].events);
	}
	if (!in_charge()) return finish_turn();
	end_everything();
	exit(0);
}

static void start_builder(void) {
	int pair[2], self = sys_pidfd_open(getpid());
	if (self < 0) die("pidfd_open; thaw needs Linux 5.12 or newer");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) die("socketpair");
	fcntl(self, F_SETFD, FD_CLOEXEC);
	builder_pid = fork();
	if (builder_pid < 0) die("cannot fork the builder; are processes (pids.max) used up?");
	if (builder_pid == 0) {
		close(SERVER_FD);
		close(pair[0]);
		builder_run(pair[1], self);
	}
	close(pair[1]);
	close(self);
	watch_open(&builder, WATCH_BUILDER, pair[0], NULL);
}

/*
 * The thread that made builder and pager, whose parent it is, and the builder's children's: the kernel ends all of them with it (PR_SET_PDEATHSIG), and one that
 * waits for a function (relief.c) cannot be ended. Nor does it have descriptors, which are closed before a thread has ended: the last close of a pipe waits, too.
 */
static void *be_parent(void *made) {
	sigset_t term_alone;
	start_builder();
	/* After the fork: functions keep the ordinary limit. */
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	paging_start();
	/* No other: that a child has ended is told to this thread, and what it has blocked is not ignored, but interrupts another. */
	sigemptyset(&term_alone);
	sigaddset(&term_alone, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &term_alone, NULL);
	if (syscall(SYS_close_range, 0, ~0U, CLOSE_RANGE_UNSHARE) != 0) die("close_range");
	sem_post(made);
	for (;;) pause();
}

static void make_parent(void) {
	sem_t made;
	pthread_attr_t attributes;
	pthread_t thread;
	sem_init(&made, 0, 0);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, PARENT_STACK_BYTES);
	if ((errno = pthread_create(&thread, &attributes, be_parent, &made)) != 0) die("pthread_create");
	pthread_attr_destroy(&attributes);
	while (sem_wait(&made) != 0) {}
}

/* The process is gone only when its last thread is, and one may be waiting for a function. Children that end are not meant. */
static void tell_end(void) {
	if (getpid() == own_pid) shutdown(SERVER_FD, SHUT_RDWR);
}

int main(int argc, char **argv) {
	struct stat info;
	if (fstat(SERVER_FD, &info) != 0 || !S_ISSOCK(info.st_mode)) {
		fputs("keeper: descriptor 3 is not a socket; it is started by a thaw server, not by hand\n", stderr);
		return 2;
	}
	prctl(PR_SET_NAME, "thaw-keeper");
	init_names(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	fcntl(SERVER_FD, F_SETFD, FD_CLOEXEC);
	int buffer_bytes = SERVER_BUFFER_BYTES;
	setsockopt(SERVER_FD, SOL_SOCKET, SO_SNDBUFFORCE, &buffer_bytes, sizeof buffer_bytes);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0) die("epoll_create1");
	mallopt(M_ARENA_MAX, 1);
	make_parent();
	sigset_t mask;
	sigemptyset(&mask);
	sigaddset(&mask, SIGTERM);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	watch_open(&term, WATCH_TERM, signalfd(-1, &mask, SFD_CLOEXEC), NULL);
	watch_open(&server, WATCH_SERVER, SERVER_FD, NULL);
	files_start();
	uint32_t hello[2] = {(uint32_t)getpid(), HUSK_VERSION};
	frame_put(MSG_HELLO, 0, 0, hello, sizeof hello);
	own_pid = getpid();
	atexit(tell_end);
	relief_run(turns);
}
