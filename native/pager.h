/* Between the keeper (paging.c) and its pager (pager.c): one datagram for each order and each answer. */
#pragma once
#include "keeper.h"

enum pager_kind { PAGER_FILE, PAGER_FORGET, PAGER_PREFETCH, PAGER_LOST };

/* `id` is a file (FILE, which brings its descriptor, and FORGET). PREFETCH: `count` prefetch_ranges follow; `tag` comes back. */
struct pager_order {
	uint32_t kind, id, tag, count;
};
/* LOST comes from the holder, when the pager ended. */
struct pager_answer {
	uint32_t kind, id, tag, reserved;
	struct prefetched prefetched;
};

_Noreturn void pager_run(int socket);

/* ---- paging.c: the keeper's side ---- */

void paging_start(void);
void paging_end(void);
void paging_event(int watch_kind);
void paging_prefetch(const struct message *head, const uint8_t *payload);
/* A file id will name something else, or nothing. */
void paging_forget(uint32_t file);
