/* One instance as the keeper's main loop sees it, and the loop's services that it uses. */
#pragma once
#include "keeper.h"

enum watch_kind { WATCH_SERVER, WATCH_BUILDER, WATCH_STATUS, WATCH_CHANNEL, WATCH_CONTROL, WATCH_LOG, WATCH_PIDFD, WATCH_HELPER_OUTPUT, WATCH_HELPER_PIDFD, WATCH_PAGER, WATCH_HOLDER, WATCH_TERM };

/* A descriptor in the epoll set; `fd` is -1 once it is closed, so that a late event of the same turn is known. */
struct watch {
	int fd;
	enum watch_kind kind;
	void *owner;
	bool paused;
};
void watch_open(struct watch *w, enum watch_kind kind, int fd, void *owner);
void watch_events(struct watch *w, uint32_t events);
void watch_pause(struct watch *w);
void watch_resume(struct watch *w);
void watch_close(struct watch *w);
int watch_take(struct watch *w); /* the descriptor, which is the caller's to close; -1: it was closed */

/* What brings the memory of a paged instance: plan, page space, base and recorded set, in this order. */
enum { PAGED_FILES = 4 };

enum instance_state { INSTANCE_QUEUED, INSTANCE_CLONED, INSTANCE_READY, INSTANCE_ENDED };

struct instance {
	uint32_t id, husk_tag, slot;
	enum instance_state state;
	bool killed, has_end;
	bool unread; /* bytes for its control socket that nobody read */
	uint32_t sends; /* SENDs that came for it */
	pid_t init_pid;
	uint32_t wait_status;
	uint64_t started_ns, oom_base;
	struct watch pidfd, status, channel, control, log;
	bool still;			/* a thread waits for it in a call: none of its watches is in the epoll set */
	unsigned slow;			/* calls that are handed over at once */
	uint64_t waited_ns;		/* in calls, since it was last found slow */
	int peak;			/* v2: memory.peak, reset when the instance began */
	int uffd;			/* a userfaultfd that its husk made and gave; -1: none */
	/* For a loader whose pages the pager brings: duplicates of its files until the pager has them, and what the husk gave. Of that the duplicate is closed when the instance has ended. */
	int gate, paged_uffd, paged_files[PAGED_FILES];
	uint32_t pager;			/* the pager that it depends on, 0: none */
	uint32_t stage_tags[STAGES_MAX];
	unsigned stage_first, stage_count;
	struct bytes sending;
	unsigned held;			/* prefetches that what is sent to it waits for */
	struct instance *next_dead;
};

extern struct cgroups cgroups;
extern struct table instances;
bool outbound_beyond(size_t bytes);

void instance_cloned(struct instance *it, const struct job_answer *answer, const int fds[3]);
void instance_event(struct instance *it, enum watch_kind kind, uint32_t events);
void instance_stage(struct instance *it, uint32_t tag, const uint8_t *payload, size_t count);
int instance_send(struct instance *it, const uint8_t *payload, size_t count);
/* What is sent to it stays here until as many releases came as holds. */
void instance_hold(struct instance *it);
void instance_release(struct instance *it);
void instance_limits(struct instance *it, uint32_t tag, const char *payload, size_t count);
void instance_kill(struct instance *it);
/* A control socket and a log pipe are kept ready for the next stage that passes them. */
bool spares_lack(void);
void spares_make(void);
/* Nothing of its memory is registered any more: once that is gone, and while it runs, for whose lock it may have to wait. */
void instance_uffd_close(struct instance *it);
void instance_uffd_let_go(struct instance *it);
/* Children that hold what a function passed until they end: those that have; all of them, when the instances are dead. */
void closers_reap(void);
void closers_end(uint64_t deadline_ns);
/* Nothing of it is looked at, until it goes on. */
void instance_stand_still(struct instance *it);
void instance_go_on(struct instance *it);
/* Called once everything of it is gone; keeper.c frees it and its cgroup. */
void instance_gone(struct instance *it);

/* ---- relief.c: who runs the loop ---- */

/* Runs `loop` in the thread in charge. It holds the house, and returns when another thread is in charge. */
_Noreturn void relief_run(void (*loop)(void));
bool in_charge(void);
/* Around a wait for events. */
void house_leave(void);
void house_enter(void);
/*
 * Around a call that a function can make last. When it has ended, all but what is of this instance may be another: nothing of a turn is looked at again unless
 * this thread is in charge. NULL: a call for the lock of somebody's memory. Nobody stands still, and an instance may be gone.
 */
void call_begins(struct instance *it);
void call_ends(struct instance *it);
