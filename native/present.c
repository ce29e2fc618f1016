/*
 * Which pages of a process are present, by where they come from (part of the extractor): `extractor scan`.
 */
#include "memory.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { WRITTEN, IN_IMAGE, IN_FILE, ZERO, HUGE, SCAN_LISTS };

struct tally {
	uint64_t written, image, file, zero;
	bool in_image;
	FILE *lists[SCAN_LISTS];
	uint64_t last[SCAN_LISTS][2];
};

static void flush_tally(struct tally *tally, int list)
{
	uint64_t *last = tally->last[list];
	if (last[1] > last[0])
		fprintf(tally->lists[list], "%s\"0x%" PRIx64 "\",%" PRIu64, ftell(tally->lists[list]) ? "," : "", last[0],
			(last[1] - last[0]) / PAGE);
	last[0] = last[1] = 0;
}

static void list_range(struct tally *tally, int list, const struct scan_region *range)
{
	if (tally->last[list][1] != range->start) {
		flush_tally(tally, list);
		tally->last[list][0] = range->start;
	}
	tally->last[list][1] = range->end;
}

static void tally_range(void *context, const struct scan_region *range)
{
	struct tally *tally = context;
	uint64_t pages = (range->end - range->start) / PAGE;
	int list = range->categories & IS_ZERO ? ZERO : !(range->categories & IS_FILE) ? WRITTEN : tally->in_image ? IN_IMAGE : IN_FILE;
	*(list == WRITTEN  ? &tally->written :
	  list == IN_IMAGE ? &tally->image :
	  list == IN_FILE  ? &tally->file :
			     &tally->zero) += pages;
	list_range(tally, list, range);
	/* Once more: one fault mapped 2 MiB of it. */
	if (range->categories & IS_HUGE)
		list_range(tally, HUGE, range);
}

/* A page space; of none, or of one that it does not map any more, the inode is 0. */
static struct stat look_at(pid_t pid, const char *path)
{
	struct stat is = { 0 };
	char gone[PATH_BYTES];
	int fd = path && *path ? open_pages(pid, path, gone) : -1;
	if (fd >= 0 && fstat(fd, &is) != 0)
		die("cannot look at %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return is;
}

static bool maps_space(const struct vma *vma, const struct stat *space)
{
	return space->st_ino != 0 && vma->inode == space->st_ino && makedev(vma->major, vma->minor) == space->st_dev;
}

int scan_pages(pid_t pid, const char *pages_path, const char *base_path)
{
	const struct stat image = look_at(pid, pages_path), base = look_at(pid, base_path);
	struct vma *vmas;
	size_t count = read_vmas(pid, &vmas, VMAS_PLAIN);
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
	int pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (pagemap < 0)
		die("cannot open %s: %s", path, strerror(errno));
	struct tally tally = { 0 };
	char *text[SCAN_LISTS];
	size_t bytes[SCAN_LISTS];
	for (int i = 0; i < SCAN_LISTS; i++)
		tally.lists[i] = open_memstream(&text[i], &bytes[i]);
	const struct scan_arg present = { .category_anyof_mask = IS_PRESENT, .return_mask = IS_FILE | IS_PRESENT | IS_ZERO | IS_HUGE };
	for (size_t i = 0; i < count; i++) {
		if (vmas[i].kind == VDSO)
			continue;
		tally.in_image = maps_space(&vmas[i], &image) || maps_space(&vmas[i], &base);
		scan(pagemap, vmas[i].start, vmas[i].end, present, tally_range, &tally);
	}
	for (int i = 0; i < SCAN_LISTS; i++) {
		flush_tally(&tally, i);
		fclose(tally.lists[i]);
	}
	printf("{\"ok\":true,\"counts\":{\"written\":%" PRIu64 ",\"image\":%" PRIu64 ",\"file\":%" PRIu64 ",\"zero\":%" PRIu64
	       "},\"written\":[%s],\"image\":[%s],\"file\":[%s],\"zeroes\":[%s],\"huge\":[%s]}\n",
	       tally.written, tally.image, tally.file, tally.zero, text[WRITTEN], text[IN_IMAGE], text[IN_FILE], text[ZERO],
	       text[HUGE]);
	return 0;
}
