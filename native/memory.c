/*
 * Collecting and copying the memory of a stopped process (part of the extractor). store.c writes it.
 *
 * Mappings of the same kind that touch and have the same protection are one region. A private file mapping that was
 * written to keeps its file, and gets an overlay for each run of changed pages; gaps of at most OVERLAY_GAP_PAGES
 * clean pages are stored with them, because a mapping costs a start more than a page costs the disk. What it maps as memory
 * already (the page spaces of its image and that image's base, the file of its hibernation) is memory: a parent.
 */
#include "ahead.h"
#include "dump.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#define CHUNK_BYTES (64ULL << 20)
#define IOV_COUNT 512

static void set_parent(struct dump *dump, int index, int fd, const char *what)
{
	struct stat is;
	struct parent *parent = &dump->parents[index];
	if (fd < 0 || fstat(fd, &is) != 0)
		die("cannot open %s: %s", what, strerror(errno));
	parent->fd = fd;
	parent->dev = is.st_dev;
	parent->ino = is.st_ino;
}

/* A page space that was removed lives on behind the process's mappings of it, and is opened through one of them; -1: it maps none. */
static int open_removed(pid_t pid, const char *name)
{
	char path[96], *maps = read_maps(pid);
	int fd = -1;
	for (char *line = strtok(maps, "\n"); line && fd < 0; line = strtok(NULL, "\n")) {
		uint64_t start, end;
		int name_at = 0;
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %*s %*s %*s %n", &start, &end, &name_at) < 2 || strcmp(line + name_at, name) != 0)
			continue;
		snprintf(path, sizeof path, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, pid, start, end);
		fd = open(path, O_RDONLY | O_CLOEXEC);
	}
	free(maps);
	return fd;
}

int open_pages(pid_t pid, const char *path, char gone[PATH_BYTES])
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 && errno != ENOENT)
		die("cannot open %s: %s", path, strerror(errno));
	if (fd >= 0)
		return fd;
	snprintf(gone, PATH_BYTES, "%s (deleted)", path);
	return open_removed(pid, gone);
}

/* One that cannot be opened so is no parent: what is mapped of it, if anything, is read through the process. */
static void open_parent(struct dump *dump, pid_t pid, int index, const char *pages)
{
	int fd = pages ? open_pages(pid, pages, dump->parents[index].gone) : -1;
	if (fd >= 0)
		set_parent(dump, index, fd, pages);
}

/* Which of the files that are memory it maps; 0: none of them. */
static int parent_of(const struct dump *dump, const struct vma *vma)
{
	for (int i = 1; vma->kind == FILE_PRIVATE && i < PARENTS; i++) {
		const struct parent *parent = &dump->parents[i];
		if (parent->fd >= 0 && vma->inode == parent->ino && makedev(vma->major, vma->minor) == parent->dev)
			return i;
	}
	return 0;
}

bool dump_takes_pages(const struct dump *dump, const struct vma *vma)
{
	return vma->kind == ANON || vma->kind == HEAP || parent_of(dump, vma) != NO_PARENT;
}

uint64_t dump_stopped_bytes(const struct dump *dump)
{
	return dump->stopped_bytes;
}

struct dump *dump_prepare(const struct target *target, const struct sources *sources)
{
	struct dump *dump = calloc(1, sizeof *dump);
	if (!dump)
		die("out of memory");
	for (int i = 0; i < PARENTS; i++)
		dump->parents[i].fd = -1;
	open_parent(dump, target->pid, IMAGE, sources->image_pages);
	open_parent(dump, target->pid, BASE, sources->base_pages);
	if (sources->swap_fd >= 0)
		set_parent(dump, SWAP, sources->swap_fd, "the file of its hibernation");
	uint64_t bytes = rollup_anonymous(target->pid);
	dump->buffer_bytes = (bytes + bytes / 4 + (8ULL << 20)) & ~((2ULL << 20) - 1);
	dump->buffer = mmap(NULL, dump->buffer_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (dump->buffer == MAP_FAILED)
		die("cannot allocate %zu MiB to copy into: %s", dump->buffer_bytes >> 20, strerror(errno));
	/* In single pages: see pace(). */
	for (size_t at = 0; at < dump->buffer_bytes; at += PORTION_BYTES, pace())
		madvise(dump->buffer + at, PORTION_BYTES, 23 /* MADV_POPULATE_WRITE: a hint here, faults do the same later */);
	return dump;
}

uint8_t *dump_room(struct dump *dump, size_t bytes)
{
	if (dump->buffer_used + bytes > dump->buffer_bytes) { /* grew since it was measured: slower, never wrong */
		dump->buffer_bytes = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
		dump->buffer = mmap(NULL, dump->buffer_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (dump->buffer == MAP_FAILED)
			die("cannot allocate %zu MiB to copy into: %s", dump->buffer_bytes >> 20, strerror(errno));
		dump->buffer_used = 0;
	}
	uint8_t *at = dump->buffer + dump->buffer_used;
	dump->buffer_used += bytes;
	return at;
}

void add_run(struct region *region, struct run run)
{
	region->runs = grow(region->runs, region->run_count, &region->run_room, sizeof run);
	region->runs[region->run_count++] = run;
	region->has_pages = true;
}

static struct region *add_region(struct dump *dump, size_t *room)
{
	dump->regions = grow(dump->regions, dump->region_count, room, sizeof *dump->regions);
	struct region *region = &dump->regions[dump->region_count++];
	memset(region, 0, sizeof *region);
	return region;
}

struct collect {
	struct dump *dump;
	const struct ahead *ahead;
	struct region *region;
	const struct vma *vma;
	size_t *room;
};

#define GUARDS_MAX 16384

void bound_guards(size_t count)
{
	if (count > GUARDS_MAX)
		refuse("it has more than %d stretches of guard pages", GUARDS_MAX);
}

/* Such a page counts as swapped out, and nobody can read it. */
static bool is_guard(struct dump *dump, const struct scan_region *range)
{
	if (!(range->categories & IS_GUARD))
		return false;
	bound_guards(dump->guard_count + 1);
	dump->guards = grow(dump->guards, dump->guard_count, &dump->guard_room, sizeof *dump->guards);
	dump->guards[dump->guard_count++] = *range;
	return true;
}

static void collect_anonymous(void *context, const struct scan_region *range)
{
	struct collect *collect = context;
	if (is_guard(collect->dump, range))
		return;
	collect->dump->anonymous_pages += (range->end - range->start) / PAGE;
	for (uint64_t at = range->start, until; at < range->end; at = until) {
		struct run run = { .address = at };
		until = collect->ahead ? ahead_part(collect->ahead, at, range->end, &run.bytes, &run.current) : range->end;
		run.pages = (until - at) / PAGE;
		run.current &= !(range->categories & IS_WRITTEN);
		add_run(collect->region, run);
	}
}

/* Changed pages of a private file mapping: overlays, small gaps included. */
static void collect_overlay(void *context, const struct scan_region *range)
{
	struct collect *collect = context;
	if (is_guard(collect->dump, range))
		return;
	collect->dump->anonymous_pages += (range->end - range->start) / PAGE;
	struct region *last = collect->region;
	if (!last || range->start - last->end > OVERLAY_GAP_PAGES * PAGE) {
		last = add_region(collect->dump, collect->room);
		last->start = range->start;
		last->kind = OVERLAY;
		last->prot = collect->vma->prot;
		last->vma = collect->vma;
		add_run(last, (struct run){ .address = range->start });
		collect->region = last;
	}
	last->end = range->end;
	last->runs[0].pages = (last->end - last->start) / PAGE;
}

static bool joins(const struct region *last, const struct vma *vma)
{
	return last && last->end == vma->start && last->prot == vma->prot && last->kind == vma->kind && vma->kind == ANON &&
	       last->wipe == vma->wipe;
}

/*
 * Files that are made anew for every sandbox, or are gone: nothing could map them again. Such a mapping becomes memory, and
 * one that was shared (it can only be read) no longer sees what is written to its file.
 */
static bool lasts(const struct dump *dump, const struct vma *vma)
{
	static const char *const passing[] = { "/tmp/", "/dev/shm/", "/memfd:" };
	for (size_t i = 0; i < sizeof passing / sizeof passing[0]; i++)
		if (strncmp(vma->path, passing[i], strlen(passing[i])) == 0)
			return false;
	for (int i = 1; i < PARENTS; i++)
		if (strcmp(vma->path, dump->parents[i].gone) == 0)
			return false;
	return true;
}

/* The kernel's own link to the file behind a mapping: no path that the function could have bent. */
static void identify(pid_t pid, struct vma *vma)
{
	char path[96];
	if (vma->identified || (vma->kind != FILE_PRIVATE && vma->kind != FILE_SHARED && vma->kind != COMMON && vma->kind != BACKED))
		return;
	snprintf(path, sizeof path, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, pid, vma->start, vma->end);
	vma->identified = stat(path, &vma->file) == 0;
	/* As maps tells a line break in a name; that may also be its own four characters. */
	if (!vma->identified || !strstr(vma->path, "\\012"))
		return;
	char name[4096];
	ssize_t got = readlink(path, name, sizeof name - 1);
	if (got < 0)
		die("cannot read the name of the mapped file %s: %s", vma->path, strerror(errno));
	name[got] = 0;
	free(vma->path);
	vma->path = strdup(name);
	if (!vma->path)
		die("out of memory");
}

void dump_identify(const struct dump *dump, pid_t pid, struct vma *vmas, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (parent_of(dump, &vmas[i]) == NO_PARENT)
			identify(pid, &vmas[i]);
}

_Noreturn void unreadable(uint64_t address)
{
	if (errno == EIO)
		refuse("its memory at 0x%" PRIx64 " cannot be read: it has guard regions (MADV_GUARD_INSTALL), it seems, which Linux 6.13 to 6.15 do not tell from swapped memory",
		       address);
	die("cannot read memory at 0x%" PRIx64 ": %s", address, strerror(errno));
}

static void copy_runs(struct dump *dump, pid_t pid, int mem, struct region *region)
{
	struct iovec local[IOV_COUNT], remote[IOV_COUNT];
	size_t pending = 0;
	uint64_t bytes = 0;
	for (size_t i = 0; i <= region->run_count; i++) {
		struct run *run = i < region->run_count ? &region->runs[i] : NULL;
		if (run && run->current)
			continue;
		if (run) {
			if (!run->bytes)
				run->bytes = dump_room(dump, run->pages * PAGE);
			dump->stopped_bytes += run->pages * PAGE;
			local[pending] = (struct iovec){ run->bytes, run->pages * PAGE };
			remote[pending] = (struct iovec){ (void *)run->address, run->pages * PAGE };
			bytes += run->pages * PAGE;
			pending++;
		}
		if (pending == 0 || (run && pending < IOV_COUNT && bytes < (256ULL << 20)))
			continue;
		/* process_vm_readv respects protections; /proc/PID/mem does not, and is slower */
		if (!(region->prot & 1) ||
		    process_vm_readv(pid, local, pending, remote, pending, 0) != (ssize_t)bytes) {
			for (size_t j = 0; j < pending; j++) {
				size_t done = 0;
				while (done < local[j].iov_len) {
					ssize_t got = pread(mem, (uint8_t *)local[j].iov_base + done, local[j].iov_len - done,
							    (off_t)((uint64_t)remote[j].iov_base + done));
					if (got <= 0)
						unreadable((uint64_t)remote[j].iov_base + done);
					done += (size_t)got;
				}
			}
		}
		pending = 0;
		bytes = 0;
	}
}

/* The name by which a clone will open it must be that of the file which is mapped. */
static void check_backed(pid_t pid, struct vma *vma)
{
	char path[PATH_BYTES + 32];
	struct stat is;
	vma->identified = false;
	identify(pid, vma);
	snprintf(path, sizeof path, "/proc/%d/root%s", pid, vma->path);
	if (vma->fd < 0 && (!vma->identified || lstat(path, &is) != 0 || is.st_dev != vma->file.st_dev || is.st_ino != vma->file.st_ino))
		refuse("it maps %s, which has another name by now", vma->path);
}

void dump_copy(struct dump *dump, const struct target *target, struct ahead *ahead)
{
	char path[96];
	dump->vma_count = ahead ? ahead_vmas(ahead, &dump->vmas) : read_vmas(target->pid, &dump->vmas, VMAS_REFUSING);
	if (ahead)
		settle_descriptors(target->pid, dump->vmas, dump->vma_count);
	snprintf(path, sizeof path, "/proc/%d/pagemap", target->pid);
	int pagemap = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof path, "/proc/%d/mem", target->pid);
	int mem = open(path, O_RDONLY | O_CLOEXEC);
	if (pagemap < 0 || mem < 0)
		die("cannot open the memory of the process: %s", strerror(errno));
	const struct scan_arg anonymous = { .category_inverted = IS_FILE | IS_ZERO,
					    .category_mask = IS_FILE | IS_ZERO,
					    .category_anyof_mask = IS_PRESENT | IS_SWAPPED,
					    .return_mask = (ahead ? IS_WRITTEN : 0) | guard_category(pagemap) };
	size_t room = 0, last_index = SIZE_MAX;
	for (size_t i = 0; i < dump->vma_count; i++) {
		struct vma *vma = &dump->vmas[i];
		vma->parent = parent_of(dump, vma);
		if (vma->parent) {
			vma->kind = ANON;
			vma->parent_offset = vma->offset;
		}
		if (vma->kind == FILE_PRIVATE || vma->kind == FILE_SHARED || vma->kind == COMMON) {
			bool passes = vma->kind == COMMON || !lasts(dump, vma);
			/* Such a file may have another size than when it was looked at ahead of time. */
			vma->identified &= !passes;
			identify(target->pid, vma);
			if (passes) {
				if (!vma->identified)
					die("cannot look at the mapped file %s: %s", vma->path, strerror(errno));
				if (vma->kind == FILE_SHARED)
					note("the mapping of %s no longer follows its file", vma->path);
				if (vma->kind != COMMON)
					vma->kind = ANON;
				vma->copied = true;
			}
		}
		if (vma->kind == BACKED)
			check_backed(target->pid, vma);
		struct region *last = last_index == SIZE_MAX ? NULL : &dump->regions[last_index];
		if (joins(last, vma)) {
			last->end = vma->end;
		} else {
			last = add_region(dump, &room);
			last->start = vma->start;
			last->end = vma->end;
			last->prot = vma->prot;
			last->kind = vma->kind;
			last->wipe = vma->wipe;
			last->offset = vma->offset;
			last->vma = vma;
			last_index = dump->region_count - 1;
		}
		struct collect collect = { dump, ahead, NULL, vma, &room };
		if (vma->kind == FILE_PRIVATE) {
			scan(pagemap, vma->start, vma->end, anonymous, collect_overlay, &collect);
		} else if (vma->copied) {
			uint64_t bytes = (uint64_t)vma->file.st_size > vma->offset ? (uint64_t)vma->file.st_size - vma->offset : 0;
			uint64_t room_here = vma->end - vma->start;
			uint64_t pages = ((bytes < room_here ? bytes : room_here) + PAGE - 1) / PAGE;
			if (pages > 0)
				add_run(&dump->regions[last_index], (struct run){ .address = vma->start, .pages = pages });
		} else if (vma->kind != VDSO && vma->kind != FILE_SHARED && vma->kind != BACKED && !vma->wipe) {
			collect.region = &dump->regions[last_index];
			scan(pagemap, vma->start, vma->end, anonymous, collect_anonymous, &collect);
		}
	}
	for (size_t i = 0; i < dump->region_count; i++) {
		struct region *region = &dump->regions[i];
		copy_runs(dump, target->pid, mem, region);
	}
	close(pagemap);
	close(mem);
}

void dump_write_allocators(const struct dump *dump, pid_t pid)
{
	json_open("trustZeros", '[');
	for (size_t i = 0; (i = next_allocator_that_trusts_zeros(pid, dump->vmas, dump->vma_count, i)) < dump->vma_count; i++)
		json_path(NULL, dump->vmas[i].path);
	json_close(']');
}
