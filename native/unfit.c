/*
 * What cannot be hibernated, by name (part of the extractor).
 */
#include "deflate.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Not in the headers of older distributions. */
#ifndef PR_GET_MDWE
#define PR_GET_MDWE 66
#endif

#define MAPPINGS_SPARE 256

/* Whether the runtime says that the library has one that has given out nothing so far. */
static bool is_unused(const struct deflation *d, const char *path)
{
	for (int i = 0; i < d->unused_count; i++)
		if (strcmp(strrchr(path, '/') + 1, d->unused[i]) == 0)
			return true;
	return false;
}

/* Replacing fails in its midst where the kernel has no room for a mapping: a run of changed pages in a mapping of a file makes two more. */
void refuse_mappings(const struct view *view)
{
	unsigned long mappings_max = 65530;
	size_t wanted = view->vma_count + MAPPINGS_SPARE;
	for (size_t i = 0; i < view->piece_count; i++)
		wanted += view->pieces[i].over_file ? 2 : 0;
	FILE *limit = fopen("/proc/sys/vm/max_map_count", "re");
	if (limit) {
		if (fscanf(limit, "%lu", &mappings_max) != 1)
			mappings_max = 65530;
		fclose(limit);
	}
	if (wanted > mappings_max)
		refuse("it has %zu mappings, and would have up to %zu: vm.max_map_count is %lu", view->vma_count, wanted, mappings_max);
}

static void refuse_process(const struct deflation *d, pid_t pid, bool files)
{
	char path[64], line[4096];
	unsigned major, minor;
	uint64_t inode;
	if (syscall(SYS_kcmp, d->target->pid, pid, KCMP_VM, 0, 0) == 0)
		refuse_instance("another process shares its memory");
	if (!files)
		return;
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	FILE *maps = fopen(path, "re");
	while (maps && fgets(line, sizeof line, maps))
		if (sscanf(line, "%*s %*s %*s %x:%x %" SCNu64, &major, &minor, &inode) == 3 && inode == d->swap.st_ino &&
		    makedev(major, minor) == d->swap.st_dev)
			refuse_instance("a process that was forked since its last hibernation maps the same file, and would see what is written to it");
	if (maps)
		fclose(maps);
}

static void refuse_children(const struct deflation *d, pid_t pid, bool files)
{
	char path[96];
	snprintf(path, sizeof path, "/proc/%d/task", pid);
	DIR *tasks = opendir(path);
	for (struct dirent *entry; tasks && (entry = readdir(tasks));) {
		int child;
		snprintf(path, sizeof path, "/proc/%d/task/%.16s/children", pid, entry->d_name);
		FILE *list = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
		while (list && fscanf(list, "%d", &child) == 1) {
			if (child != d->target->pid)
				refuse_process(d, child, files);
			refuse_children(d, child, files);
		}
		if (list)
			fclose(list);
	}
	if (tasks)
		closedir(tasks);
}

static int by_offset(const void *left, const void *right)
{
	const struct vma *a = *(const struct vma *const *)left, *b = *(const struct vma *const *)right;
	return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* A mapping that grew beyond its cells maps those of another, and what one of them wrote would be stored for both. */
void refuse_overlaps(const struct deflation *d, const struct view *view)
{
	size_t count = 0;
	const struct vma **mapped = malloc((view->vma_count + 1) * sizeof *mapped);
	if (!mapped)
		die("out of memory");
	for (size_t i = 0; i < view->vma_count; i++)
		if (in_swap(d, &view->vmas[i]))
			mapped[count++] = &view->vmas[i];
	qsort(mapped, count, sizeof *mapped, by_offset);
	for (size_t i = 1; i < count; i++)
		if (mapped[i - 1]->offset + (mapped[i - 1]->end - mapped[i - 1]->start) > mapped[i]->offset)
			refuse_instance("memory that was hibernated has grown by gigabytes since, over the place of other memory in the file");
	free(mapped);
}

/* The last process or thread that was made on this machine; 0: unknown. */
static unsigned long last_made(void)
{
	char text[128];
	unsigned long pid = 0;
	int fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[got < 0 ? 0 : got] = 0;
	const char *last = strrchr(text, ' ');
	return last && sscanf(last, "%lu", &pid) == 1 ? pid : 0;
}

/*
 * Another process with the same memory would go on while it is replaced. One that was forked after an earlier hibernation has private mappings
 * of the file, whose pages, as long as it writes none of its own, are what this process hibernates with. Asked before anything is written
 * and again when all is stopped: who is forked between the two is found, but may have seen pages change by then.
 */
void refuse_sharers(const struct deflation *d, const struct view *view)
{
	static unsigned long looked_after;
	char text[2048];
	pid_t parent = 0;
	bool files = false;
	unsigned long last = last_made();
	if (last != 0 && last == looked_after)
		return; /* nobody forked since */
	looked_after = last;
	for (size_t i = 0; i < view->vma_count && !files; i++)
		files = in_swap(d, &view->vmas[i]);
	const char *state = read_stat(d->target->pid, d->target->pid, text, sizeof text);
	if (!state || sscanf(state, " %*c %d", &parent) != 1)
		die("cannot read the state of process %d: %s", d->target->pid, strerror(errno));
	/* What lost its parent is the child of init, which is its own. */
	refuse_children(d, parent, files);
}

/*
 * Memory in the file is counted to nobody, and after a wake there is room for as much again. Of one that has as much there as it may have in all no more is
 * taken: it could use the disk up, one hibernation after another.
 */
void refuse_beyond_limit(const struct deflation *d)
{
	uint64_t stored = (uint64_t)d->swap.st_blocks * 512;
	if (d->limit_bytes && stored > d->limit_bytes)
		refuse_instance("what it was hibernated with takes %" PRIu64 " MiB, and it may have %" PRIu64 " MiB of memory", stored >> 20, d->limit_bytes >> 20);
}

/* What replaces the memory runs in a page of the process that is written first, and of its own memory some may be such code. */
void refuse_forbidden(const struct deflation *d)
{
	if (inject(d->target, &d->target->threads[0], SYS_prctl, (uint64_t[6]){ PR_GET_MDWE, 0, 0, 0, 0, 0 }) > 0)
		refuse("it has forbidden itself memory that is written and executed (prctl PR_SET_MDWE)");
}

void refuse_unfit(const struct deflation *d, const struct view *view)
{
	struct statvfs where;
	if (fstatvfs(SWAP_FD, &where) == 0 && (where.f_flag & ST_NOEXEC))
		refuse("its memory may hold code, and the directory for it is mounted noexec");
	for (size_t i = 0; i < view->vma_count; i++)
		if (view->vmas[i].watched)
			refuse_instance("its memory is watched by a userfaultfd");
	for (size_t i = 0; (i = next_allocator_that_trusts_zeros(d->target->pid, view->vmas, view->vma_count, i)) < view->vma_count; i++)
		if (!is_unused(d, view->vmas[i].path))
			refuse("its allocator (jemalloc, in %s) relies on zeros where memory was given back, and memory that is a file gives its bytes back",
			       view->vmas[i].path);
}
