/* Between the keeper (paging.c) and its pager (pager.c): one datagram for each order and each answer. */
#pragma once
#include "keeper.h"

enum pager_kind { PAGER_FILE, PAGER_FORGET, PAGER_PREFETCH, PAGER_ADOPT, PAGER_DROP, PAGER_TRACE, PAGER_INSTALLED, PAGER_FAILED, PAGER_LOST };
/* What comes with ADOPT. The set only where the plan reads one, the base only where the image has one: else it is the page space once more. */
enum { ADOPT_UFFD, ADOPT_GATE, ADOPT_PLAN, ADOPT_PAGES, ADOPT_BASE, ADOPT_SET, ADOPT_FDS };

/*
 * `id` is a file (FILE, which brings its descriptor, and FORGET) or an instance. PREFETCH: `count` prefetch_ranges follow. TRACE is answered
 * with a memfd. `tag` comes back.
 */
struct pager_order {
	uint32_t kind, id, tag, count;
};
/* LOST comes from the holder, when the pager ended. */
struct pager_answer {
	uint32_t kind, id, tag;
	int32_t error;
	struct prefetched prefetched;
	struct paged_report report;
	char text[128];
};

_Noreturn void pager_run(int socket);
void pager_answer(const struct pager_answer *answer);
void pager_order(void);
/* Whether the page cache has the ranges, by a few of them, others each time. Never waits for a disk. */
bool seems_cached(const struct prefetch_range *ranges, uint32_t count, int (*descriptor)(uint32_t file));

/* ---- space.c: userfaultfds, on the pager's thread ---- */

void space_start(int epoll);
void space_adopt(uint32_t id, int fds[ADOPT_FDS]);
void space_drop(uint32_t id);
int space_trace(uint32_t id, const uint64_t **trace, size_t *count);
/* One thing that happened: an order (data pointer NULL), or something on a userfaultfd. */
void space_turn(int epoll, int timeout_ms);

/* ---- paging.c: the keeper's side ---- */

void paging_start(void);
void paging_end(void);
void paging_event(int watch_kind);
/* With the id of an instance: nothing, where all seems to be cached; else what is sent to it from now on waits until the pager has asked the disk. */
void paging_prefetch(const struct message *head, const uint8_t *payload);
/* Lets go who has waited too long for the pager. Milliseconds until there may be another, -1: nobody waits. */
int paging_late(void);
/* The husk of an instance gave its userfaultfd and its gate. */
struct instance;
void paging_plan(struct instance *it, const struct message *head, const uint8_t *payload);
void paging_adopt(struct instance *it);
void paging_trace(struct instance *it, uint32_t tag);
/* The instance is over. */
void paging_gone(struct instance *it);
/* A file id will name something else, or nothing. */
void paging_forget(uint32_t file);
