/*
 * Mappings and pages (part of the extractor).
 *
 * Layout of a page space. Every region (mappings of the same kind that touch and have the same protection are one
 * region, so that generations do not multiply them) that holds pages gets a slot of the sparse file: a linear range,
 * page at slot + (address - start). Slots are far larger than regions: a mapping that grows (mremap) finds
 * holes, which read as zeros, and never another region's bytes. Zero pages are holes. A private file mapping that was
 * written to keeps its file, and gets an overlay for each run of changed pages; gaps of at most OVERLAY_GAP_PAGES
 * clean pages are stored with them, because a mapping costs a start more than a page costs the disk.
 *
 * Digest: over (offset, content) of every page that is not zero, in order of offset. Any change within one
 * 8-byte word changes it for certain (each step is a bijection of the state), others with probability 1 - 2^-64.
 */
#include "ahead.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

/* What `vma.parent` says: whose file is mapped as memory. */
enum { NO_PARENT, IMAGE, BASE, SWAP, PARENTS };
#define SLOT_SHIFT_MAX 34
#define SLOT_SHIFT_MIN 28
#define VMAS_MAX 32768
#define CHUNK_BYTES (64ULL << 20)
#define COPY_BYTES (1ULL << 20)
#define IOV_COUNT 512

static const char *const kind_names[] = { "anon", "heap", "stack", "file", "shared", "overlay", "vdso" };

struct run {
	uint64_t address, pages;
	uint8_t *bytes; /* NULL: in that parent's file at parent_offset */
	bool current; /* they are there already */
	int parent;
	uint64_t parent_offset;
};

struct region {
	uint64_t start, end, offset, slot;
	int prot;
	enum kind kind;
	bool wipe, has_pages;
	const struct vma *vma; /* the file, for kinds that have one */
	struct run *runs;
	size_t run_count, run_room;
	/* what was stored: page index within the region, count */
	uint64_t (*stored)[2];
	size_t stored_count, stored_room;
	/* where there is a base: what became of each page, and the mappings that a start makes of this region */
	uint8_t *classes;
	struct cut *pieces;
	size_t piece_count;
};

struct dump {
	struct parent {
		int fd; /* -1: there is none */
		char gone[4096]; /* how its mappings are called when it was removed */
		dev_t dev;
		ino_t ino;
	} parents[PARENTS]; /* by vma.parent */
	uint8_t *buffer;
	size_t buffer_bytes, buffer_used;
	struct vma *vmas;
	size_t vma_count;
	struct region *regions;
	size_t region_count;
	struct scan_region *guards; /* MADV_GUARD_INSTALL; in order */
	size_t guard_count, guard_room;
	uint64_t anonymous_pages;
	uint64_t stopped_bytes; /* copied while all was stopped */
	uint64_t file_bytes, digest;
};

void *grow(void *list, size_t count, size_t *room, size_t item)
{
	if (count < *room)
		return list;
	*room = *room ? *room * 2 : 16;
	list = realloc(list, *room * item);
	if (!list) {
		errno = ENOMEM;
		die("out of memory");
	}
	return list;
}

/* ---- digest ---- */

static uint64_t rotate(uint64_t value, int by)
{
	return value << by | value >> (64 - by);
}

static uint64_t page_digest(const uint8_t *page)
{
	const uint64_t *words = (const uint64_t *)page;
	uint64_t lanes[4] = { 1, 2, 3, 4 };
	for (size_t i = 0; i < PAGE / 8; i += 4)
		for (int lane = 0; lane < 4; lane++)
			lanes[lane] = rotate((lanes[lane] ^ words[i + (size_t)lane]) * 0x9e3779b97f4a7c15ULL, 29);
	uint64_t digest = lanes[0];
	for (int lane = 1; lane < 4; lane++)
		digest = rotate(digest * 0xbf58476d1ce4e5b9ULL, 31) ^ lanes[lane];
	return digest;
}

static void digest_page(uint64_t *digest, uint64_t offset, const uint8_t *page)
{
	*digest = rotate((*digest ^ (offset / PAGE)) * 0x94d049bb133111ebULL, 27);
	*digest = rotate((*digest ^ page_digest(page)) * 0x9e3779b97f4a7c15ULL, 33);
}

bool is_zero(const uint8_t *page)
{
	const uint64_t *words = (const uint64_t *)page;
	for (size_t i = 0; i < PAGE / 8; i += 8)
		if (words[i] | words[i + 1] | words[i + 2] | words[i + 3] | words[i + 4] | words[i + 5] | words[i + 6] | words[i + 7])
			return false;
	return true;
}

/* ---- mappings ---- */

uint64_t rollup_anonymous(pid_t pid)
{
	char path[64], line[256];
	unsigned long kib = 0;
	snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
	FILE *file = fopen(path, "re");
	if (!file)
		die("cannot read %s: %s", path, strerror(errno));
	while (fgets(line, sizeof line, file))
		if (sscanf(line, "Anonymous: %lu", &kib) == 1)
			break;
	fclose(file);
	return kib * 1024ULL;
}

char *read_maps(pid_t pid)
{
	char path[64];
	static size_t room = 1 << 16;
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *text = malloc(room);
	size_t used = 0;
	for (ssize_t got = 1; fd >= 0 && text && got > 0; used += (size_t)got) {
		if (room - used < 8192)
			text = realloc(text, room *= 2);
		got = text ? read(fd, text + used, room - used - 1) : -1;
		if (got < 0)
			die("cannot read %s: %s", path, strerror(errno));
	}
	if (fd < 0 || !text)
		die("cannot read %s: %s", path, strerror(errno));
	close(fd);
	text[used] = 0;
	return text;
}

/* What is read of a mapping, but for smaps' own words; false: it is none, or not counted. */
static bool parse_mapping(const char *line, struct vma *vma, int *name_at)
{
	char perms[8];
	*name_at = 0;
	memset(vma, 0, sizeof *vma);
	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %x:%x %" SCNu64 " %n", &vma->start, &vma->end, perms, &vma->offset,
		   &vma->major, &vma->minor, &vma->inode, name_at) < 7 || *name_at == 0)
		return false;
	vma->prot = (perms[0] == 'r' ? 1 : 0) | (perms[1] == 'w' ? 2 : 0) | (perms[2] == 'x' ? 4 : 0);
	vma->shared = perms[3] == 's';
	return true;
}

static bool passed_over(const struct vma *vma, const char *name)
{
	return (vma->start >= HUSK_ZONE_START && vma->start < HUSK_ZONE_END) || strncmp(name, "[vsyscall]", 10) == 0;
}

bool vmas_hold(const struct vma *vmas, size_t count, const char *then, const char *maps)
{
	size_t i = 0;
	if (strcmp(then, maps) != 0)
		return false;
	for (const char *line = maps; *line; line = strchr(line, '\n') + 1) {
		struct vma now;
		int name_at;
		if (!parse_mapping(line, &now, &name_at) || passed_over(&now, line + name_at))
			continue;
		const struct vma *vma = &vmas[i];
		if (i++ == count || vma->start != now.start || vma->end != now.end || vma->prot != now.prot || vma->shared != now.shared ||
		    vma->inode != now.inode || vma->major != now.major || vma->minor != now.minor || (now.inode != 0 && vma->offset != now.offset))
			return false;
	}
	return i == count;
}

size_t read_vmas(pid_t pid, struct vma **list, enum vma_flags flags)
{
	/* locked, huge pages, sealed, device, dropped by the kernel as it likes */
	static const char *const fixed[] = { " lo", " ht", " sl", " pf", " io", " dp" };
	char path[64], *line = NULL;
	size_t line_room = 0, count = 0, room = 0;
	snprintf(path, sizeof path, "/proc/%d/%s", pid, flags == VMAS_PLAIN ? "maps" : "smaps");
	FILE *file = fopen(path, "re");
	if (!file)
		die("cannot read %s: %s", path, strerror(errno));
	struct vma *vmas = NULL, *current = NULL;
	while (getline(&line, &line_room, file) > 0) {
		struct vma vma;
		int name_at;
		if (parse_mapping(line, &vma, &name_at)) {
			line[strcspn(line, "\n")] = 0;
			current = NULL;
			const char *name = line + name_at;
			if (passed_over(&vma, name))
				continue;
			if (count == VMAS_MAX)
				refuse("it has more than %d mappings", VMAS_MAX);
			vmas = grow(vmas, count, &room, sizeof *vmas);
			current = &vmas[count++];
			*current = vma;
			current->path = strdup(name);
			if (strncmp(name, "[vvar", 5) == 0 || strcmp(name, "[vdso]") == 0)
				current->kind = VDSO;
			else if (strcmp(name, "[heap]") == 0)
				current->kind = HEAP;
			else if (current->inode != 0)
				current->kind = current->shared ? FILE_SHARED : FILE_PRIVATE;
			else
				current->kind = ANON;
		} else if (current && strncmp(line, "VmFlags:", 8) == 0) {
			bool writable_ever = strstr(line, " mw") != NULL;
			if (strstr(line, " gd"))
				current->kind = STACK;
			current->wipe = strstr(line, " wf") != NULL;
			for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++)
				current->stays |= strstr(line, fixed[i]) != NULL;
			current->watched = strstr(line, " um") || strstr(line, " uw") || strstr(line, " ui");
			if (flags < VMAS_REFUSING)
				continue;
			if (current->shared && (writable_ever || current->inode == 0))
				refuse("it maps shared, writable memory (%s, %" PRIu64 " KiB)",
				       current->path[0] ? current->path : "anonymous", (current->end - current->start) / 1024);
			if (strstr(line, " pf") || strstr(line, " io"))
				if (current->kind != VDSO)
					refuse("it maps a device (%s)", current->path);
			if (current->watched && flags != VMAS_REFUSING_OTHERS)
				refuse("it uses userfaultfd");
			if (strstr(line, " ss"))
				refuse("it uses a shadow stack");
		} else if (current && strncmp(line, "ProtectionKey:", 14) == 0 && strtol(line + 14, NULL, 10) != 0) {
			if (flags >= VMAS_REFUSING)
				refuse("it maps memory with a protection key");
			current->stays = true;
		}
	}
	fclose(file);
	free(line);
	*list = vmas;
	return count;
}

void scan(int pagemap, uint64_t start, uint64_t end, struct scan_arg how,
	  void (*each)(void *context, const struct scan_region *range), void *context)
{
	static struct scan_region ranges[1024];
	how.size = sizeof how;
	how.start = start;
	how.end = end;
	how.vec = (uint64_t)ranges;
	how.vec_len = sizeof ranges / sizeof ranges[0];
	while (how.start < end) {
		long got = ioctl(pagemap, IOCTL_PAGEMAP_SCAN, &how);
		if (got < 0)
			die("cannot scan pages: %s (PAGEMAP_SCAN needs Linux 6.7)", strerror(errno));
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

/* A parent that was removed lives on behind the process's mappings of it, and is opened through one of them; -1: it maps none. */
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

static void open_parent(struct dump *dump, pid_t pid, int index, const char *pages)
{
	if (!pages)
		return;
	int fd = open(pages, O_RDONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT) {
		snprintf(dump->parents[index].gone, sizeof dump->parents[index].gone, "%s (deleted)", pages);
		fd = open_removed(pid, dump->parents[index].gone);
		if (fd < 0)
			return; /* what it still maps of it, if anything, is read through the process */
	}
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
	madvise(dump->buffer, dump->buffer_bytes, MADV_HUGEPAGE);
	madvise(dump->buffer, dump->buffer_bytes, 23 /* MADV_POPULATE_WRITE: a hint here, faults do the same later */);
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

static void add_run(struct region *region, struct run run)
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

/* Such a page counts as swapped out, and nobody can read it. */
static bool is_guard(struct dump *dump, const struct scan_region *range)
{
	if (!(range->categories & IS_GUARD))
		return false;
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

static int by_address(const void *left, const void *right)
{
	const struct run *a = left, *b = right;
	return a->address < b->address ? -1 : a->address > b->address;
}

/* The kernel's own link to the file behind a mapping: no path that the function could have bent. */
static void identify(pid_t pid, struct vma *vma)
{
	char path[96];
	if (vma->identified || (vma->kind != FILE_PRIVATE && vma->kind != FILE_SHARED))
		return;
	snprintf(path, sizeof path, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, pid, vma->start, vma->end);
	vma->identified = stat(path, &vma->file) == 0;
}

void dump_identify(const struct dump *dump, pid_t pid, struct vma *vmas, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (parent_of(dump, &vmas[i]) == NO_PARENT)
			identify(pid, &vmas[i]);
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
						die("cannot read memory at %p: %s", remote[j].iov_base, strerror(errno));
					done += (size_t)got;
				}
			}
		}
		pending = 0;
		bytes = 0;
	}
}

void dump_copy(struct dump *dump, const struct target *target, struct ahead *ahead)
{
	char path[96];
	dump->vma_count = ahead ? ahead_vmas(ahead, &dump->vmas) : read_vmas(target->pid, &dump->vmas, VMAS_REFUSING);
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
		if (vma->kind == FILE_PRIVATE || vma->kind == FILE_SHARED) {
			bool passes = !lasts(dump, vma);
			/* Such a file may have another size than when it was looked at ahead of time. */
			vma->identified &= !passes;
			identify(target->pid, vma);
			if (passes) {
				if (!vma->identified)
					die("cannot look at the mapped file %s: %s", vma->path, strerror(errno));
				if (vma->shared)
					note("the mapping of %s no longer follows its file", vma->path);
				vma->kind = ANON;
				vma->copied = true;
			}
		}
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
		} else if (vma->kind != VDSO && vma->kind != FILE_SHARED && !vma->wipe) {
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

void dump_write_allocator(const struct dump *dump, pid_t pid)
{
	const char *path = allocator_that_trusts_zeros(pid, dump->vmas, dump->vma_count);
	if (!path)
		return;
	json_path("trustsZeros", path);
	note("its allocator (jemalloc, in %s) relies on zeros where memory was given back: it is always loaded eagerly", path);
}

/* ---- storing ---- */

static void remember_stored(struct region *region, uint64_t page)
{
	if (region->stored_count) {
		uint64_t *last = region->stored[region->stored_count - 1];
		if (last[0] + last[1] == page) {
			last[1]++;
			return;
		}
	}
	region->stored = grow(region->stored, region->stored_count, &region->stored_room, sizeof *region->stored);
	region->stored[region->stored_count][0] = page;
	region->stored[region->stored_count++][1] = 1;
}

static void write_all(int fd, const uint8_t *bytes, size_t count, uint64_t offset)
{
	while (count > 0) {
		ssize_t put = pwrite(fd, bytes, count, (off_t)offset);
		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			die("cannot write the page space: %s", strerror(errno));
		bytes += put;
		count -= (size_t)put;
		offset += (uint64_t)put;
	}
}

/*
 * What is stored next to each other is written at once, as far as it lies in one block of 2 MiB: a write becomes one piece in the page cache, whoever had
 * the pages (gather.c).
 */
static struct {
	uint64_t offset;
	size_t bytes;
	uint8_t block[HUGE_BYTES] __attribute__((aligned(4096)));
} unwritten;

static void write_block(int fd)
{
	write_all(fd, unwritten.block, unwritten.bytes, unwritten.offset);
	unwritten.bytes = 0;
}

static void put(int fd, const uint8_t *bytes, size_t count, uint64_t offset)
{
	if (offset != unwritten.offset + unwritten.bytes)
		write_block(fd);
	while (count > 0) {
		if (unwritten.bytes == 0)
			unwritten.offset = offset;
		size_t room = HUGE_BYTES - offset % HUGE_BYTES, part = count < room ? count : room;
		memcpy(unwritten.block + unwritten.bytes, bytes, part);
		unwritten.bytes += part;
		bytes += part;
		count -= part;
		offset += part;
		if (part == room)
			write_block(fd);
	}
}

/* Writes `pages` pages that stand at `address`, leaving out zero pages. */
static void store_pages(struct dump *dump, int fd, struct region *region, uint64_t address, const uint8_t *bytes, uint64_t pages)
{
	uint64_t offset = region->slot + (address - region->start);
	uint64_t from = 0;
	for (uint64_t i = 0; i <= pages; i++) {
		bool left_out = i < pages && region->classes &&
				region->classes[(address - region->start) / PAGE + i] == PAGE_LEFT_OUT;
		bool keep = i < pages && !left_out && !is_zero(bytes + i * PAGE);
		if (keep) {
			digest_page(&dump->digest, offset + i * PAGE, bytes + i * PAGE);
			remember_stored(region, (address - region->start) / PAGE + i);
			continue;
		}
		if (i > from)
			put(fd, bytes + from * PAGE, (i - from) * PAGE, offset + from * PAGE);
		from = i + 1;
	}
}

/*
 * A page of the parent counts only where the process has no copy of its own: cuts the process's runs (sorted, first
 * `own` of them) out of the parent's.
 */
static void subtract_own(struct region *region, size_t own, struct run parent)
{
	uint64_t at = parent.address, end = parent.address + parent.pages * PAGE;
	for (size_t i = 0; i <= own && at < end; i++) {
		uint64_t until = i < own ? region->runs[i].address : end;
		if (until > end)
			until = end;
		if (until > at)
			add_run(region, (struct run){ .address = at,
						      .pages = (until - at) / PAGE,
						      .parent = parent.parent,
						      .parent_offset = parent.parent_offset + (at - parent.address) });
		uint64_t own_end = i < own ? region->runs[i].address + region->runs[i].pages * PAGE : end;
		if (own_end > at)
			at = own_end;
	}
}

/* Calls `each` with every page of a region that may hold bytes, in order of address. */
static void each_page(struct dump *dump, int fd, struct region *region,
		      void (*each)(struct dump *dump, int fd, struct region *region, uint64_t address, const uint8_t *bytes, uint64_t pages))
{
	static uint8_t copy[COPY_BYTES] __attribute__((aligned(4096)));
	qsort(region->runs, region->run_count, sizeof *region->runs, by_address);
	for (size_t i = 0; i < region->run_count; i++) {
		const struct run *run = &region->runs[i];
		if (run->bytes) {
			each(dump, fd, region, run->address, run->bytes, run->pages);
			continue;
		}
		uint64_t bytes = run->pages * PAGE;
		for (uint64_t done = 0; done < bytes;) {
			size_t part = bytes - done < COPY_BYTES ? bytes - done : COPY_BYTES;
			ssize_t got = pread(dump->parents[run->parent].fd, copy, part, (off_t)(run->parent_offset + done));
			if (got < 0)
				die("cannot read what the process has no copy of: %s", strerror(errno));
			memset(copy + got, 0, part - (size_t)got);
			each(dump, fd, region, run->address + done, copy, part / PAGE);
			done += part;
		}
	}
}

static void compare_pages(struct dump *dump, int fd, struct region *region, uint64_t address, const uint8_t *bytes, uint64_t pages)
{
	(void)dump;
	(void)fd;
	base_compare(region->classes, region->start, address, bytes, pages);
}

/* Cuts the regions where they share pages with the base; leaves them whole where all of that would save too little. */
static void share_with_base(struct dump *dump)
{
	uint64_t shared = 0, own = 0;
	for (size_t i = 0; i < dump->region_count; i++) {
		struct region *region = &dump->regions[i];
		if ((region->kind == ANON || region->kind == HEAP) && !region->wipe)
			region->classes = base_classes(region->start, region->end);
		if (!region->classes) {
			for (size_t j = 0; j < region->run_count; j++)
				own += region->runs[j].pages;
			continue;
		}
		each_page(dump, -1, region, compare_pages);
		region->piece_count = base_pieces(region->classes, region->start, region->end, &region->pieces);
		base_count(region->classes, (region->end - region->start) / PAGE, &shared, &own);
	}
	if (base_pays(shared, own))
		return;
	for (size_t i = 0; i < dump->region_count; i++) {
		struct region *region = &dump->regions[i];
		free(region->classes);
		free(region->pieces);
		region->classes = NULL;
		region->pieces = NULL;
		region->piece_count = 0;
	}
}

static void add_parent_pages(struct dump *dump, struct region *region)
{
	size_t own = region->run_count;
	qsort(region->runs, own, sizeof *region->runs, by_address);
	for (size_t i = 0; i < dump->vma_count; i++) {
		const struct vma *vma = &dump->vmas[i];
		int fd = dump->parents[vma->parent].fd;
		if (vma->parent == NO_PARENT || vma->start < region->start || vma->start >= region->end)
			continue;
		uint64_t at = vma->parent_offset, end = at + (vma->end - vma->start);
		while (at < end) {
			off_t data = lseek(fd, (off_t)at, SEEK_DATA);
			if (data < 0 && errno != ENXIO)
				die("cannot read what the process has no copy of: %s", strerror(errno));
			if (data < 0 || (uint64_t)data >= end)
				break;
			off_t hole = lseek(fd, data, SEEK_HOLE);
			uint64_t from = (uint64_t)data & ~(PAGE - 1);
			uint64_t to = hole < 0 || (uint64_t)hole > end ? end : ((uint64_t)hole + PAGE - 1) & ~(PAGE - 1);
			subtract_own(region, own, (struct run){ .address = vma->start + (from - vma->parent_offset),
								.pages = (to - from) / PAGE,
								.parent = vma->parent,
								.parent_offset = from });
			at = to;
		}
	}
}

/* Slots as large as the file system and the number of regions allow. */
static int lay_out(struct dump *dump, int fd)
{
	size_t holding = 0;
	for (size_t i = 0; i < dump->region_count; i++)
		holding += dump->regions[i].has_pages;
	uint64_t next = 0;
	for (int shift = SLOT_SHIFT_MAX; shift >= SLOT_SHIFT_MIN; shift--) {
		uint64_t slot_bytes = 1ULL << shift;
		next = 0;
		for (size_t i = 0; i < dump->region_count; i++) {
			struct region *region = &dump->regions[i];
			if (!region->has_pages)
				continue;
			/* Same place within 2 MiB in memory and file: the kernel can then map what is only read by huge entries. */
			uint64_t lead = region->start & (HUGE_BYTES - 1);
			region->slot = next + lead;
			next += (lead + region->end - region->start + slot_bytes - 1) & ~(slot_bytes - 1);
		}
		if (next <= PAGE_SPACE_BYTES_MAX && ftruncate(fd, (off_t)next) == 0) {
			dump->file_bytes = next;
			return shift;
		}
	}
	if (next > PAGE_SPACE_BYTES_MAX)
		refuse("its memory is spread over %" PRIu64 " GiB of addresses, and an image takes %llu", next >> 30, PAGE_SPACE_BYTES_MAX >> 30);
	die("the page space of %zu regions does not fit into one file here: %s", holding, strerror(errno));
}

void dump_store(struct dump *dump, int image_dir, uint64_t *stored_pages, uint64_t *anonymous_pages)
{
	int fd = openat(image_dir, "pages", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		die("cannot make the page space: %s", strerror(errno));
	for (size_t i = 0; i < dump->region_count; i++)
		if (dump->regions[i].kind != FILE_PRIVATE)
			add_parent_pages(dump, &dump->regions[i]);
	lay_out(dump, fd);
	share_with_base(dump);
	*stored_pages = 0;
	for (size_t i = 0; i < dump->region_count; i++) {
		each_page(dump, fd, &dump->regions[i], store_pages);
		for (size_t j = 0; j < dump->regions[i].stored_count; j++)
			*stored_pages += dump->regions[i].stored[j][1];
	}
	write_block(fd);
	if (fdatasync(fd) != 0 || close(fd) != 0)
		die("cannot write the page space: %s", strerror(errno));
	*anonymous_pages = dump->anonymous_pages;
}

static void write_file_of(const struct vma *vma)
{
	json_path("path", vma->path);
	if (!vma->identified)
		return; /* the compiler refuses a file without identity, and names it */
	json_open("identity", '{');
	json_hex("inode", vma->file.st_ino);
	json_hex("size", (uint64_t)vma->file.st_size);
	json_int("mtimeS", vma->file.st_mtim.tv_sec);
	json_int("mtimeNs", vma->file.st_mtim.tv_nsec);
	json_int("ctimeS", vma->file.st_ctim.tv_sec);
	json_int("ctimeNs", vma->file.st_ctim.tv_nsec);
	json_close('}');
}

/* Runs of pages of [start, end) that hold bytes, as indices within that part. */
static void write_runs(const struct region *region, uint64_t start, uint64_t end, bool from_base)
{
	uint64_t first = (start - region->start) / PAGE, count = (end - start) / PAGE;
	json_open("runs", '[');
	if (from_base) {
		for (uint64_t i = 0, pages; i < count; i += pages ? pages : 1) {
			for (pages = 0; i + pages < count && region->classes[first + i + pages] == PAGE_LEFT_OUT;)
				pages++;
			if (pages) {
				json_int(NULL, (int64_t)i);
				json_int(NULL, (int64_t)pages);
			}
		}
	}
	for (size_t j = 0; !from_base && j < region->stored_count; j++) {
		uint64_t at = region->stored[j][0], until = at + region->stored[j][1];
		at = at > first ? at : first;
		until = until < first + count ? until : first + count;
		if (at < until) {
			json_int(NULL, (int64_t)(at - first));
			json_int(NULL, (int64_t)(until - at));
		}
	}
	json_close(']');
}

static void write_pieces(const struct region *region)
{
	for (size_t i = 0; i < region->piece_count; i++) {
		const struct cut *piece = &region->pieces[i];
		json_open(NULL, '{');
		json_string("kind", piece->from_base ? "base" : kind_names[region->kind]);
		json_hex("start", piece->start);
		json_hex("end", piece->end);
		json_int("prot", region->prot);
		json_hex("slot", piece->from_base ? piece->slot : region->slot + (piece->start - region->start));
		write_runs(region, piece->start, piece->end, piece->from_base);
		json_close('}');
	}
}

void dump_write_regions(const struct dump *dump)
{
	json_hex("pageSpaceBytes", dump->file_bytes);
	json_hex("digest", dump->digest);
	json_open("regions", '[');
	for (size_t i = 0; i < dump->region_count; i++) {
		const struct region *region = &dump->regions[i];
		if (region->piece_count) {
			write_pieces(region);
			continue;
		}
		json_open(NULL, '{');
		json_string("kind", kind_names[region->kind]);
		json_hex("start", region->start);
		json_hex("end", region->end);
		json_int("prot", region->prot);
		if (region->wipe)
			json_int("wipe", 1);
		if (region->kind == FILE_PRIVATE || region->kind == FILE_SHARED) {
			json_hex("offset", region->offset);
			write_file_of(region->vma);
		}
		if (region->kind == VDSO)
			json_string("path", region->vma->path);
		if (region->has_pages) {
			json_hex("slot", region->slot);
			write_runs(region, region->start, region->end, false);
		}
		json_close('}');
	}
	json_close(']');
	json_open("guards", '[');
	for (size_t i = 0; i < dump->guard_count; i++) {
		json_open(NULL, '[');
		json_hex(NULL, dump->guards[i].start);
		json_hex(NULL, dump->guards[i].end);
		json_close(']');
	}
	json_close(']');
}

/* ---- verify: the digest of a page space on disk ---- */

int verify_pages(const char *path)
{
	static uint8_t copy[COPY_BYTES] __attribute__((aligned(4096)));
	struct stat is;
	uint64_t digest = 0, pages = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &is) != 0)
		die("cannot open %s: %s", path, strerror(errno));
	for (off_t at = 0; at < is.st_size;) {
		off_t data = lseek(fd, at, SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			break;
		off_t hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
		if (data < 0 || hole < 0)
			die("cannot read %s: %s", path, strerror(errno));
		data &= ~(off_t)(PAGE - 1);
		while (data < hole) {
			size_t part = (uint64_t)(hole - data) < COPY_BYTES ? (size_t)(hole - data) : COPY_BYTES;
			ssize_t got = pread(fd, copy, part, data);
			if (got <= 0)
				die("cannot read %s: %s", path, got == 0 ? "it ends early" : strerror(errno));
			memset(copy + got, 0, (PAGE - (size_t)got % PAGE) % PAGE);
			for (size_t i = 0; i < (size_t)got; i += PAGE) {
				if (is_zero(copy + i))
					continue;
				digest_page(&digest, (uint64_t)data + i, copy + i);
				pages++;
			}
			data += got;
		}
		at = hole;
	}
	printf("{\"ok\":true,\"digest\":\"0x%" PRIx64 "\",\"bytes\":\"0x%" PRIx64 "\",\"pages\":%" PRIu64 "}\n", digest,
	       (uint64_t)is.st_size, pages);
	return 0;
}

/* ---- scan: what is present, by source ---- */

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

int scan_pages(pid_t pid, const char *pages_path, const char *base_path)
{
	struct stat is = { 0 }, base = { 0 };
	if (base_path && stat(base_path, &base) != 0)
		die("cannot look at %s: %s", base_path, strerror(errno));
	if (pages_path && stat(pages_path, &is) != 0)
		die("cannot look at %s: %s", pages_path, strerror(errno));
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
		dev_t device = makedev(vmas[i].major, vmas[i].minor);
		tally.in_image = (pages_path && vmas[i].inode == is.st_ino && device == is.st_dev) ||
				 (base_path && vmas[i].inode == base.st_ino && device == base.st_dev);
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
