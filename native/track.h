/* Which pages a process writes while it runs: what freezing and hibernating share. */
#pragma once
#include "memory.h"

#define WP_UNPOPULATED (1ULL << 13) /* UFFD_FEATURE_WP_UNPOPULATED: not in the headers of older distributions */

/*
 * Makes a userfaultfd in a process whose main thread is stopped, and takes it over: nothing of it stays in the process. It notes
 * writes (WP_ASYNC) and nobody ever waits for it. `features`: further ones. Refuses where the kernel cannot. Closing it ends all
 * tracking.
 */
int track_make(struct target *target, uint64_t features);
/* From now on writes to this mapping are noted, once its pages were protected. False: it is gone, or was never of that kind. */
bool track_mapping(int uffd, const struct vma *vma);
/* Takes protection and tracking from it again; what is gone is passed over. */
void track_no_more(int uffd, const struct vma *vma);
/* Calls `each` with the private pages that were written since they were last protected (at first all), and protects them again. */
void track_written(int pagemap, const struct vma *vma, void (*each)(void *context, const struct scan_region *range), void *context);
/* A copy of a descriptor of a process; -1 and errno. */
int take_descriptor(pid_t pid, int theirs);
/* What keeps this kernel from telling what a process writes, with errno; NULL: nothing does. */
const char *tracking_lacks(void);
/* The same for a start that records what it touches (src/image/compile-recording.ts): an answer on stdout, which `thaw doctor` reads, too. */
int try_tracking(void);
