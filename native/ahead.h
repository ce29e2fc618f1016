/* Copying memory ahead of the stop, while the process runs (ahead.c). */
#pragma once
#include "memory.h"

struct ahead;
/* Finds out what there is, refuses what could never be frozen, and has the kernel note writes from now on. The main thread, and
   nothing else, must be stopped. `dump` gives the room to copy into. */
struct ahead *ahead_arm(struct target *target, struct dump *dump);
/* Copies what was written since the last round, everything the first time; the process runs. Returns the bytes. */
uint64_t ahead_round(struct ahead *ahead);
/* Rounds until what is left is small or no longer shrinks. */
void ahead_rounds(struct ahead *ahead);
/* The mappings as they are now; all is stopped. What smaps says of them is that of the last round where they are the same. */
size_t ahead_vmas(struct ahead *ahead, struct vma **list);
/* How far from `at`, at most to `end`, memory was copied to one place, and where; NULL: it was not. `current`: these bytes count,
   unless the page was written since. */
uint64_t ahead_part(const struct ahead *ahead, uint64_t at, uint64_t end, uint8_t **bytes, bool *current);
/* Takes all protection away; the process runs again. */
void ahead_end(struct ahead *ahead);
uint64_t ahead_bytes(const struct ahead *ahead);
int ahead_round_count(const struct ahead *ahead);
