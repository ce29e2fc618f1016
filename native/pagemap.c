/*
 * Which pages of a process are there, and of what kind: PAGEMAP_SCAN, and before Linux 6.7 the entries of /proc/PID/pagemap, read one by one (part of
 * the extractor). Those do not tell whether one entry maps 2 MiB, and of writes only what soft-dirty bits tell (track.c): without them every page
 * counts as written. Addresses where nothing is cost time to read, and none to scan.
 */
#include "memory.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Of an entry: see Documentation/admin-guide/mm/pagemap.rst. */
#define ENTRY_PRESENT (1ULL << 63)
#define ENTRY_SWAPPED (1ULL << 62)
#define ENTRY_FILE (1ULL << 61)
#define ENTRY_FRAME ((1ULL << 55) - 1)
#define ENTRIES 8192

static bool soft_dirty;

void scan_soft_dirty(void)
{
	soft_dirty = true;
}

uint64_t own_entry(const void *page)
{
	uint64_t entry = 0;
	int own = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (own < 0 || pread(own, &entry, sizeof entry, (off_t)((uint64_t)page / PAGE * sizeof entry)) != sizeof entry)
		die("cannot read /proc/self/pagemap: %s", strerror(errno));
	close(own);
	return entry;
}

/* The frame that is mapped where zeros were read and nothing was written. 0: hidden from us, and pages of zeros are told apart by their bytes. */
static uint64_t zero_frame(void)
{
	static uint64_t frame, known;
	if (known)
		return frame;
	volatile char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		die("out of memory");
	(void)*page;
	frame = own_entry((const void *)page) & ENTRY_FRAME;
	known = 1;
	munmap((void *)page, PAGE);
	return frame;
}

static uint64_t categories_of(uint64_t entry)
{
	uint64_t categories = (entry & ENTRY_PRESENT ? IS_PRESENT : 0) | (entry & ENTRY_SWAPPED ? IS_SWAPPED : 0);
	if (!soft_dirty || (entry & ENTRY_SOFT_DIRTY))
		categories |= IS_WRITTEN;
	if (entry & ENTRY_FILE)
		return categories | IS_FILE;
	bool zero = (entry & ENTRY_PRESENT) && (entry & ENTRY_FRAME) && (entry & ENTRY_FRAME) == zero_frame();
	return categories | (zero ? IS_ZERO : 0);
}

/* As the kernel's pagemap_scan_is_interesting_page. */
static bool is_wanted(const struct scan_arg *how, uint64_t categories)
{
	categories ^= how->category_inverted;
	return (categories & how->category_mask) == how->category_mask &&
	       (!how->category_anyof_mask || (categories & how->category_anyof_mask));
}

bool has_scan(int pagemap)
{
	static int known = -1;
	struct scan_region region;
	struct scan_arg ask = { .size = sizeof ask, .start = 0, .end = PAGE, .vec = (uint64_t)&region, .vec_len = 1, .category_mask = IS_PRESENT,
				.return_mask = IS_PRESENT };
	if (known < 0)
		known = ioctl(pagemap, IOCTL_PAGEMAP_SCAN, &ask) >= 0 || errno != ENOTTY;
	return known;
}

static void scan_entries(int pagemap, uint64_t start, uint64_t end, const struct scan_arg *how,
			 void (*each)(void *context, const struct scan_region *range), void *context)
{
	static uint64_t entries[ENTRIES];
	struct scan_region range = { start, start, 0 };
	for (uint64_t at = start; at < end;) {
		size_t wanted = (end - at) / PAGE < ENTRIES ? (end - at) / PAGE : ENTRIES;
		ssize_t got = pread(pagemap, entries, wanted * sizeof entries[0], (off_t)(at / PAGE * sizeof entries[0]));
		/* Its memory is gone with it. */
		if (got < 0)
			die("cannot read the pages of the process: %s", strerror(errno));
		if (got == 0)
			break;
		for (size_t i = 0; i < (size_t)got / sizeof entries[0]; i++, at += PAGE) {
			uint64_t categories = categories_of(entries[i]);
			if (!is_wanted(how, categories))
				continue;
			categories &= how->return_mask;
			if (range.end != at || range.categories != categories) {
				if (range.end > range.start)
					each(context, &range);
				range = (struct scan_region){ at, at, categories };
			}
			range.end = at + PAGE;
		}
	}
	if (range.end > range.start)
		each(context, &range);
}

void scan(int pagemap, uint64_t start, uint64_t end, struct scan_arg how,
	  void (*each)(void *context, const struct scan_region *range), void *context)
{
	static struct scan_region ranges[1024];
	if (!has_scan(pagemap)) {
		scan_entries(pagemap, start, end, &how, each, context);
		return;
	}
	how.size = sizeof how;
	how.start = start;
	how.end = end;
	how.vec = (uint64_t)ranges;
	how.vec_len = sizeof ranges / sizeof ranges[0];
	while (how.start < end) {
		long got = ioctl(pagemap, IOCTL_PAGEMAP_SCAN, &how);
		if (got < 0)
			die("cannot scan pages: %s", strerror(errno));
		for (long i = 0; i < got; i++)
			each(context, &ranges[i]);
		/* The kernel collects 512 ranges at a time, and when the last lot ends the walk, walk_end is still that of the lot
		 * before (seen on 6.18): what was reported since would be reported again. */
		uint64_t next = how.walk_end;
		if (got > 0 && ranges[got - 1].end > next)
			next = ranges[got - 1].end;
		if (next <= how.start)
			die("scanning pages made no progress");
		how.start = next;
	}
}

uint64_t guard_category(int pagemap)
{
	static uint64_t known = 1;
	struct scan_region region;
	struct scan_arg ask = { .size = sizeof ask, .start = 0, .end = PAGE, .vec = (uint64_t)&region, .vec_len = 1, .category_mask = IS_GUARD,
				.return_mask = IS_GUARD };
	if (known == 1)
		known = ioctl(pagemap, IOCTL_PAGEMAP_SCAN, &ask) >= 0 ? IS_GUARD : 0;
	return known;
}
