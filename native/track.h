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
/* How writes of a process are noted. */
enum tracking { TRACKED_NOT, TRACKED_ONCE, TRACKED_AGAIN };
/*
 * Has the kernel note what a process writes whose main thread is stopped. TRACKED_AGAIN: by the userfaultfd that is put into `*uffd`, as above. TRACKED_ONCE:
 * by soft-dirty bits, from now on, and only from now on. TRACKED_NOT: this kernel cannot (and `*uffd` is -1, as with soft-dirty bits).
 */
enum tracking track_begin(struct target *target, int *uffd);
/* From now on writes to this mapping are noted, once its pages were protected. False: it is gone, or was never of that kind. */
bool track_mapping(int uffd, const struct vma *vma);
/* Takes protection and tracking from it again; what is gone is passed over. */
void track_no_more(int uffd, const struct vma *vma);
/*
 * Calls `each` with the private pages of a mapping: all of them, or those that were written since they were last protected, and protects them again
 * (TRACKED_ONCE: since it began).
 */
void track_written(int pagemap, const struct vma *vma, bool all, void (*each)(void *context, const struct scan_region *range), void *context);
/* A copy of a descriptor of a process; -1 and errno. */
int take_descriptor(pid_t pid, int theirs);
/* Which of them this kernel can; TRACKED_NOT: `*why` says what it lacks, with errno. */
enum tracking tracking_known(const char **why);
/*
 * An answer on stdout, which `thaw doctor` reads, too: whether a start can record exactly what it touches (src/image/compile-recording.ts), whether the pager can
 * serve faults by /dev/userfaultfd (`served`), and how writes are noted (`writes`).
 */
int try_tracking(void);
