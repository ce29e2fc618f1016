/* Mappings (mappings.c) and present pages (pagemap.c), and what freezing has of memory for those who copy ahead (memory.c). */
#pragma once
#include "extractor.h"
#include <sys/ioctl.h>
#include <sys/stat.h>

#define OVERLAY_GAP_PAGES 32
#define HUGE_BYTES (2ULL << 20)
#define PAGE_SPACE_BYTES_MAX (15ULL << 40)

/* Not in the headers of older distributions. */
struct scan_region {
	uint64_t start, end, categories;
};
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define IOCTL_PAGEMAP_SCAN _IOWR('f', 16, struct scan_arg)
enum { IS_WRITTEN = 1 << 1, IS_FILE = 1 << 2, IS_PRESENT = 1 << 3, IS_SWAPPED = 1 << 4, IS_ZERO = 1 << 5, IS_HUGE = 1 << 6, IS_GUARD = 1 << 8 };

/* COMMON: shared memory that nothing but this one mapping leads to; the process shares it with children that it forks. BACKED: shared
   memory of a file in /tmp, or of one that the process has open: a clone has that file anyway, and maps it. */
enum kind { ANON, HEAP, STACK, FILE_PRIVATE, FILE_SHARED, OVERLAY, VDSO, COMMON, BACKED };

struct vma {
	uint64_t start, end, offset, inode, parent_offset;
	uint32_t major, minor;
	int prot;
	bool shared, wipe;
	int parent; /* it maps a page space, of its image or the image's base, or its hibernation's file: memory all the same; 0: none */
	bool stays; /* cannot be replaced by another mapping, or would be another thing then: locked, huge pages, sealed, a protection key… */
	bool watched; /* by a userfaultfd */
	bool copied; /* its file does not last: all its bytes are kept as memory */
	bool writes; /* it may be made writable, whatever it is now */
	int fd; /* BACKED: the descriptor by which a clone maps it; -1: its path */
	enum kind kind;
	char *path;
	bool identified;
	struct stat file;
};

/* The text of /proc/PID/maps: costs a tenth of what smaps costs. The caller's to free. */
char *read_maps(pid_t pid);
/* What read_vmas does beside reading maps: nothing; what smaps says of each mapping (which walks all page tables); refuse what
   cannot be frozen; the same, but for mappings that a userfaultfd watches, because it is ours. */
enum vma_flags { VMAS_PLAIN, VMAS_FLAGS, VMAS_REFUSING, VMAS_REFUSING_OTHERS };
/* Of COMMON memory, and FILE_SHARED of files that do not last: makes it BACKED where a clone has the file, refuses what it could not have. */
void settle_shared(pid_t pid, struct vma *vmas, size_t count);
/* By which descriptors a clone maps what is BACKED: of a process that stands still. What was found while it ran may be another file by now. */
void settle_descriptors(pid_t pid, struct vma *vmas, size_t count);
/* Reads every mapping outside the husk's zone. */
size_t read_vmas(pid_t pid, struct vma **list, enum vma_flags flags);
/* Whether the mappings that were read beside the text `then` of /proc/PID/maps are those of the text `maps`. What is read of a process that runs
   may be of another moment than a text that was read before or after it, or of several: equal texts alone do not say so. */
bool vmas_hold(const struct vma *vmas, size_t count, const char *then, const char *maps);
/* Calls `each` for every range of pages that PAGEMAP_SCAN reports, or would report. */
void scan(int pagemap, uint64_t start, uint64_t end, struct scan_arg how, void (*each)(void *context, const struct scan_region *range),
	  void *context);
/* Whether this kernel has PAGEMAP_SCAN. */
bool has_scan(int pagemap);
/* From now on what /proc/PID/pagemap has of soft-dirty bits decides what is written, where PAGEMAP_SCAN is not there. */
void scan_soft_dirty(void);
#define ENTRY_SOFT_DIRTY (1ULL << 55)
/* What /proc/self/pagemap has of one of our own pages. */
uint64_t own_entry(const void *page);
/* Refuses a process with more of them than can be given again: each takes a call of a program, and nothing that its owner pays for. */
void bound_guards(size_t count);
/* IS_GUARD, where this kernel tells of guard regions (Linux 6.16), else 0. */
uint64_t guard_category(int pagemap);
/* What a page that must be readable and is not (errno) means for the process. */
_Noreturn void unreadable(uint64_t address);
bool is_zero(const uint8_t *page);
#define PATH_BYTES 4096
/* A page space of the process: by its path or, when it was removed under it, through a mapping of it, which is called `gone` then; -1: it maps none. */
int open_pages(pid_t pid, const char *path, char gone[PATH_BYTES]);
/* The next mapping, from this one on, of a file with an allocator (jemalloc) that relies on zeros where memory was given back; `count`: none.
   A private mapping of a file gives the file's bytes back. */
size_t next_allocator_that_trusts_zeros(pid_t pid, const struct vma *vmas, size_t count, size_t from);
/* Room for one more item in a list that doubles. */
void *grow(void *list, size_t count, size_t *room, size_t item);
/* Whether private pages of this mapping are the image's memory, not an overlay of a file. */
bool dump_takes_pages(const struct dump *dump, const struct vma *vma);
/* Looks at the files behind the mappings ahead of time. */
void dump_identify(const struct dump *dump, pid_t pid, struct vma *vmas, size_t count);
/* Bytes of its anonymous memory, at this moment. */
uint64_t rollup_anonymous(pid_t pid);
/* Room to copy into. */
uint8_t *dump_room(struct dump *dump, size_t bytes);
