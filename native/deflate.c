/*
 * Hibernation: the memory of a process goes to a file, the process stays (part of the extractor).
 *
 *   extractor deflate PID CONTROL_FD [kept=OFFSET,BYTES,…] 3<>SWAP    SWAP: an unlinked file that belongs to this process alone
 *
 * Theory of operation. Private pages are written to the file, then private mappings of the file take the place of the memory, and
 * clean pages of other files are dropped (Hibernate Container, 2023, §3.2). Page tables go with the pages; kernel objects stay.
 * Waking needs nothing of us: pages come back by faults, or by reading ahead.
 *
 *   stage     the process     what it does
 *   arm       main thread     a userfaultfd with WP_ASYNC is made by injection, taken over, and registered: the kernel then notes
 *             held shortly    which pages are written, and nobody ever waits for it
 *   copy      runs            private pages → file, fdatasync, and again what was written meanwhile, until that is little. Almost all
 *                             of the bytes; a full disk is found here
 *   stop      all stopped     what was written since is copied; what is gone is cleared
 *   remap     all stopped     mappings of the file over the memory, MADV_DONTNEED over all. No way back: a failure here ends the
 *                             process, because half of it would be gone
 *   settle    runs            file flushed and dropped from the page cache
 *
 * SIGTERM (a request came) ends it before remap with nothing changed, and so do bytes that lie unread in its control socket; after
 * that it is done within milliseconds.
 *
 * The second time, mappings of the file are already there: their private pages are written to their own places, and only
 * dropped. Where the file holds what is known from the mappings themselves; nothing else is kept between two runs.
 *
 * `kept`: parts of the file, in order, whose private pages are written like all others, and stay where they are. Every request writes
 * them again, and a page that is there spares it a fault, a copy, and on a cold disk a read.
 *
 * The file is an array of cells of 4 GiB. A range of memory begins in a cell of its own, at its own place within 2 MiB, and what
 * follows it up to the next cell is a hole: memory that grows (mremap) finds zeros. Cells of memory that is gone are
 * used again.
 */
#include "track.h"
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Not in the headers of older distributions. */
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define SWAP_FD 3
#define CELL_BYTES (4ULL << 30)
#define CELLS_MAX (PAGE_SPACE_BYTES_MAX / CELL_BYTES)
#define CHUNK_PAGES 256
#define MAPPINGS_SPARE 256
#define STOP_TRIES 400
#define STOP_WAIT_US 500
#define ROUNDS_MAX 8
#define FEW_PAGES 16
#define KEPT_MAX 512

struct range {
	uint64_t start, end;
	bool written;
};

/* Memory that lives, or will live, at one place of the file. */
struct piece {
	uint64_t start, end, offset;
	int prot;
	bool mapped;   /* it is a mapping of the file already */
	bool over_file; /* pages of another file lie in it */
	bool joinable;
	struct range *ranges; /* of private pages */
	size_t range_count, range_room;
	const struct piece *before; /* the same memory as it was copied while the process ran */
};

/* What the mappings are, and what is private in them, at one moment. */
struct view {
	char *text; /* of /proc/PID/maps */
	struct vma *vmas;
	size_t vma_count;
	struct piece *pieces;
	size_t piece_count, piece_room;
	struct range *guards; /* MADV_GUARD_INSTALL: what replaces the memory must get them again */
	size_t guard_count, guard_room;
	/* what has been touched since the last time, and what of it written, as JSON: offset and length by turns; files with the same */
	FILE *swap_present, *swap_written, *file_present;
	char *swap_text, *written_text, *file_text;
	size_t swap_bytes, written_bytes, file_bytes;
};

struct deflation {
	struct target *target;
	int mem, pagemap, uffd;
	struct stat swap;
	uint64_t cells[(CELLS_MAX + 63) / 64];
	uint64_t file_bytes, written_pages;
	uint64_t stopped_ns;
	struct range kept[KEPT_MAX]; /* offsets */
	size_t kept_count;
	struct range *held; /* addresses of what is kept */
	size_t held_count, held_room;
	/* while one mapping is scanned */
	struct view *view;
	const struct vma *vma;
	uint64_t present[2];
	bool present_any;
};

static volatile sig_atomic_t cancelled;
static char buffer[CHUNK_PAGES * 4096] __attribute__((aligned(4096)));

static void on_term(int signal)
{
	(void)signal;
	cancelled = 1;
}

/* ---- what there is ---- */

static bool in_swap(const struct deflation *d, const struct vma *vma)
{
	return vma->inode == d->swap.st_ino && makedev(vma->major, vma->minor) == d->swap.st_dev;
}

/* Stays as it is: small, or not ours to replace. */
static bool left_alone(const struct vma *vma)
{
	return vma->kind == STACK || vma->kind == VDSO || vma->wipe || vma->stays;
}

static void take_cells(struct deflation *d, uint64_t offset, uint64_t bytes)
{
	for (uint64_t cell = offset / CELL_BYTES; cell <= (offset + bytes - 1) / CELL_BYTES && cell < CELLS_MAX; cell++)
		d->cells[cell / 64] |= 1ULL << (cell % 64);
}

static bool taken(const struct deflation *d, uint64_t cell)
{
	return d->cells[cell / 64] >> (cell % 64) & 1;
}

static void punch(uint64_t offset, uint64_t bytes)
{
	if (fallocate(SWAP_FD, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes) != 0)
		die("cannot clear a part of the file: %s", strerror(errno));
}

/* A place for a piece, where nothing is. */
static uint64_t place(struct deflation *d, uint64_t start, uint64_t end)
{
	uint64_t lead = start & (HUGE_BYTES - 1), cells = (lead + end - start + CELL_BYTES - 1) / CELL_BYTES, run = 0;
	for (uint64_t cell = 0; cell < CELLS_MAX; cell++) {
		run = taken(d, cell) ? 0 : run + 1;
		if (run < cells)
			continue;
		uint64_t offset = (cell + 1 - cells) * CELL_BYTES, bytes = cells * CELL_BYTES;
		if (offset + bytes > d->file_bytes) {
			if (ftruncate(SWAP_FD, (off_t)(offset + bytes)) != 0)
				die("the file cannot be as long as memory is spread: %s", strerror(errno));
			d->file_bytes = offset + bytes;
		}
		/* what was there before: memory that is gone, or a cancelled hibernation */
		if (lseek(SWAP_FD, (off_t)offset, SEEK_DATA) >= 0)
			punch(offset, bytes);
		take_cells(d, offset, bytes);
		return offset + lead;
	}
	refuse("its memory is spread over more than %llu GiB of addresses", PAGE_SPACE_BYTES_MAX >> 30);
}

static struct piece *add_piece(struct view *view, struct piece piece)
{
	view->pieces = grow(view->pieces, view->piece_count, &view->piece_room, sizeof piece);
	view->pieces[view->piece_count] = piece;
	return &view->pieces[view->piece_count++];
}

static void flush_present(struct deflation *d)
{
	FILE *out = in_swap(d, d->vma) ? d->view->swap_present : d->view->file_present;
	if (d->present[1] > d->present[0])
		fprintf(out, "%s%" PRIu64 ",%" PRIu64, d->present_any || (in_swap(d, d->vma) && ftell(out)) ? "," : "",
			d->present[0] - d->vma->start + d->vma->offset, d->present[1] - d->present[0]);
	d->present_any |= d->present[1] > d->present[0];
	d->present[0] = d->present[1] = 0;
}

/* One range of present pages of one kind. */
static void see(void *context, const struct scan_region *range)
{
	struct deflation *d = context;
	const struct vma *vma = d->vma;
	struct view *view = d->view;
	if (range->categories & IS_GUARD) {
		view->guards = grow(view->guards, view->guard_count, &view->guard_room, sizeof *view->guards);
		view->guards[view->guard_count++] = (struct range){ range->start, range->end, false };
		return;
	}
	if (vma->kind == FILE_PRIVATE || vma->kind == FILE_SHARED) {
		if (range->start != d->present[1])
			flush_present(d);
		if (d->present[1] == 0)
			d->present[0] = range->start;
		d->present[1] = range->end;
	}
	if (range->categories & (IS_FILE | IS_ZERO) || vma->kind == FILE_SHARED)
		return;
	struct piece *last = view->piece_count ? &view->pieces[view->piece_count - 1] : NULL;
	struct range private = { range->start, range->end, range->categories & IS_WRITTEN };
	if (in_swap(d, vma))
		fprintf(view->swap_written, "%s%" PRIu64 ",%" PRIu64, ftell(view->swap_written) ? "," : "", range->start - vma->start + vma->offset,
			range->end - range->start);
	if (vma->kind == FILE_PRIVATE && !in_swap(d, vma)) {
		/* changed pages of another file: an overlay for each run, as a freeze makes them */
		if (!last || !last->over_file || last->start < vma->start || range->start - last->end > OVERLAY_GAP_PAGES * PAGE)
			last = add_piece(view, (struct piece){ .start = range->start, .prot = vma->prot, .over_file = true });
		last->end = range->end;
	} else if (!last || last->end < range->end) {
		bool joins = last && last->joinable && last->end == vma->start && last->prot == vma->prot && vma->kind == ANON;
		if (joins)
			last->end = vma->end;
		else
			last = add_piece(view, (struct piece){ .start = vma->start, .end = vma->end, .prot = vma->prot,
							       .mapped = in_swap(d, vma), .offset = in_swap(d, vma) ? vma->offset : 0,
							       .joinable = vma->kind == ANON });
	}
	last->ranges = grow(last->ranges, last->range_count, &last->range_room, sizeof private);
	last->ranges[last->range_count++] = private;
}

static void look(struct deflation *d, struct view *view, const struct view *earlier)
{
	pid_t pid = d->target->pid;
	view->text = read_maps(pid);
	/* smaps costs milliseconds, maps a tenth of that */
	if (earlier && vmas_hold(earlier->vmas, earlier->vma_count, earlier->text, view->text)) {
		view->vmas = earlier->vmas;
		view->vma_count = earlier->vma_count;
	} else {
		view->vma_count = read_vmas(pid, &view->vmas, VMAS_FLAGS);
	}
	view->swap_present = open_memstream(&view->swap_text, &view->swap_bytes);
	view->swap_written = open_memstream(&view->written_text, &view->written_bytes);
	view->file_present = open_memstream(&view->file_text, &view->file_bytes);
	if (!view->swap_present || !view->swap_written || !view->file_present)
		die("out of memory");
	const struct scan_arg present = { .category_anyof_mask = IS_PRESENT | IS_SWAPPED,
					  .return_mask = IS_FILE | IS_PRESENT | IS_SWAPPED | IS_ZERO | IS_WRITTEN | guard_category(d->pagemap) };
	memset(d->cells, 0, sizeof d->cells);
	d->view = view;
	bool any_file = false;
	for (size_t i = 0; i < view->vma_count; i++) {
		const struct vma *vma = d->vma = &view->vmas[i];
		if (in_swap(d, vma))
			take_cells(d, vma->offset, vma->end - vma->start);
		if (left_alone(vma))
			continue;
		bool other = (vma->kind == FILE_PRIVATE || vma->kind == FILE_SHARED) && !in_swap(d, vma);
		d->present_any = false;
		if (other) {
			/* by the kernel's own link to the file: no path that the function could have bent */
			fprintf(view->file_present, "%s{\"file\":\"%x:%x:%" PRIu64 "\",\"mapping\":\"%" PRIx64 "-%" PRIx64 "\",\"ranges\":[",
				any_file ? "," : "", vma->major, vma->minor, vma->inode, vma->start, vma->end);
			any_file = true;
		}
		scan(d->pagemap, vma->start, vma->end, present, see, d);
		flush_present(d);
		if (other)
			fprintf(view->file_present, "]}");
	}
}

/* Gives every piece its place: where it is, where it was copied to while the process ran, or a new one. */
static void settle_places(struct deflation *d, struct view *view, const struct view *earlier)
{
	for (size_t i = 0; earlier && i < earlier->piece_count; i++)
		if (!earlier->pieces[i].mapped)
			take_cells(d, earlier->pieces[i].offset, earlier->pieces[i].end - earlier->pieces[i].start);
	for (size_t i = 0; i < view->piece_count; i++) {
		struct piece *piece = &view->pieces[i];
		for (size_t j = 0; earlier && j < earlier->piece_count; j++) {
			const struct piece *old = &earlier->pieces[j];
			if (old->start != piece->start || old->over_file != piece->over_file || old->mapped != piece->mapped)
				continue;
			/* it grew or shrank within its cells; another mapping of the file is another place */
			uint64_t room = CELL_BYTES - old->offset % CELL_BYTES;
			if (piece->mapped ? old->offset == piece->offset : piece->end <= old->end || piece->end - piece->start <= room)
				piece->before = old;
		}
		if (!piece->mapped)
			piece->offset = piece->before ? piece->before->offset : place(d, piece->start, piece->end);
	}
}

/* ---- copying ---- */

static void read_memory(struct deflation *d, uint64_t address, size_t bytes)
{
	struct iovec local = { buffer, bytes }, remote = { (void *)address, bytes };
	if (process_vm_readv(d->target->pid, &local, 1, &remote, 1, 0) == (ssize_t)bytes)
		return;
	/* it respects protections; this does not, and is slower. Memory that went away meanwhile is looked at again when all is stopped. */
	for (size_t done = 0; done < bytes;) {
		ssize_t got = pread(d->mem, buffer + done, bytes - done, (off_t)(address + done));
		if (got <= 0 && d->target->thread_count > 0)
			die("cannot read memory at 0x%" PRIx64 ": %s", address, strerror(errno));
		if (got <= 0)
			memset(buffer + done, 0, (size_t)(got = PAGE));
		done += (size_t)got;
	}
}

static void write_file(uint64_t offset, const char *bytes, size_t count)
{
	while (count > 0) {
		ssize_t put = pwrite(SWAP_FD, bytes, count, (off_t)offset);
		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			die("cannot write the memory to disk: %s", strerror(put < 0 ? errno : (errno = ENOSPC)));
		bytes += put;
		count -= (size_t)put;
		offset += (uint64_t)put;
	}
}

/* `fresh`: the place is a hole, so that zero pages need not be written. */
static void copy_range(struct deflation *d, const struct piece *piece, uint64_t start, uint64_t end, bool fresh)
{
	for (uint64_t at = start; at < end && !cancelled;) {
		size_t pages = (end - at) / PAGE < CHUNK_PAGES ? (end - at) / PAGE : CHUNK_PAGES;
		read_memory(d, at, pages * PAGE);
		size_t from = 0;
		for (size_t i = 0; i <= pages; i++) {
			if (i < pages && !(fresh && is_zero((const uint8_t *)buffer + i * PAGE)))
				continue;
			if (i > from)
				write_file(piece->offset + (at - piece->start) + from * PAGE, buffer + from * PAGE, (i - from) * PAGE);
			d->written_pages += i - from;
			from = i + 1;
		}
		at += pages * PAGE;
	}
}

static void copy_piece(struct deflation *d, const struct piece *piece, bool fresh)
{
	if (piece->over_file) /* clean pages between changed ones, too */
		copy_range(d, piece, piece->start, piece->end, false);
	for (size_t i = 0; i < piece->range_count && !piece->over_file; i++)
		copy_range(d, piece, piece->ranges[i].start, piece->ranges[i].end, fresh);
}

/* Was written since it was copied, and is protected again: to its place once more. What has no place yet is found at the stop. */
static void copy_again(void *context, const struct scan_region *range)
{
	struct deflation *d = context;
	for (size_t i = 0; i < d->view->piece_count; i++) {
		const struct piece *piece = &d->view->pieces[i];
		uint64_t start = range->start > piece->start ? range->start : piece->start;
		uint64_t end = range->end < piece->end ? range->end : piece->end;
		if (start < end)
			copy_range(d, piece, start, end, false);
	}
}

/* So that little is left for the stop, whatever the process did while its memory was written to disk. */
static void copy_rounds(struct deflation *d, struct view *view)
{
	d->view = view;
	for (int round = 0; round < ROUNDS_MAX && !cancelled; round++) {
		uint64_t before = d->written_pages;
		for (size_t i = 0; i < view->vma_count && !cancelled; i++)
			if (!left_alone(&view->vmas[i]))
				track_written(d->pagemap, &view->vmas[i], copy_again, d);
		if (d->written_pages - before <= FEW_PAGES)
			break;
	}
}

/* Calls `each` for every part of `a` that `b` does not cover. Both are sorted. */
static void subtract(struct deflation *d, const struct piece *a, const struct piece *b, bool unwritten_only,
		     void (*each)(struct deflation *d, const struct piece *of, uint64_t start, uint64_t end))
{
	size_t j = 0;
	for (size_t i = 0; i < a->range_count; i++) {
		uint64_t at = a->ranges[i].start, end = a->ranges[i].end;
		if (unwritten_only && a->ranges[i].written)
			continue;
		while (j > 0 && b->ranges[j - 1].end > at)
			j--;
		while (at < end) {
			while (j < b->range_count && b->ranges[j].end <= at)
				j++;
			uint64_t until = j < b->range_count && b->ranges[j].start < end ? b->ranges[j].start : end;
			if (until > at)
				each(d, a, at, until);
			at = j < b->range_count && b->ranges[j].end > until ? b->ranges[j].end : end;
		}
	}
}

static void copy_missed(struct deflation *d, const struct piece *piece, uint64_t start, uint64_t end)
{
	copy_range(d, piece, start, end, false);
}

/* Was copied, and the process has it no more: anonymous memory is zeros then, and a page of a file is the file's again. */
static void forget(struct deflation *d, const struct piece *piece, uint64_t start, uint64_t end)
{
	if (piece->over_file)
		copy_range(d, piece, start, end, false);
	else if (!piece->mapped)
		punch(piece->offset + (start - piece->start), end - start);
}

/* What has changed since copy_all; all threads are stopped. */
static void copy_rest(struct deflation *d, const struct view *view)
{
	for (size_t i = 0; i < view->piece_count && !cancelled; i++) {
		const struct piece *piece = &view->pieces[i], *before = piece->before;
		if (!before || (piece->over_file && piece->end != before->end)) {
			copy_piece(d, piece, !before && !piece->mapped);
			continue;
		}
		for (size_t j = 0; j < piece->range_count; j++)
			if (piece->ranges[j].written)
				copy_range(d, piece, piece->ranges[j].start, piece->ranges[j].end, false);
		subtract(d, piece, before, true, copy_missed);
		struct piece gone = *before;
		while (gone.range_count && gone.ranges[gone.range_count - 1].start >= piece->end)
			gone.range_count--;
		subtract(d, &gone, piece, false, forget);
	}
}

/* ---- refusals ---- */

/* Whether the dynamic symbols of an ELF file have jemalloc's own interface in them. */
static bool holds_jemalloc(const char *path)
{
	struct stat is;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &is) != 0 || !S_ISREG(is.st_mode) || (uint64_t)is.st_size < sizeof(Elf64_Ehdr)) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	size_t size = (size_t)is.st_size;
	const uint8_t *file = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (file == MAP_FAILED)
		return false;
	const Elf64_Ehdr *head = (const Elf64_Ehdr *)file;
	bool found = false;
	if (memcmp(head->e_ident, ELFMAG, SELFMAG) == 0 && head->e_shentsize == sizeof(Elf64_Shdr) && head->e_shoff < size &&
	    (size - head->e_shoff) / sizeof(Elf64_Shdr) >= head->e_shnum) {
		const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + head->e_shoff);
		for (unsigned i = 0; i < head->e_shnum && !found; i++) {
			const Elf64_Shdr *section = &sections[i];
			if (section->sh_type != SHT_STRTAB || !(section->sh_flags & SHF_ALLOC) || section->sh_offset > size ||
			    section->sh_size > size - section->sh_offset)
				continue;
			/* mallctl, je_mallctl, _rjem_mallctl: whatever its prefix */
			found = memmem(file + section->sh_offset, section->sh_size, "mallctl", sizeof "mallctl") != NULL;
		}
	}
	munmap((void *)file, size);
	return found;
}

const char *allocator_that_trusts_zeros(pid_t pid, const struct vma *vmas, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		const struct vma *vma = &vmas[i];
		char path[96];
		if (vma->kind != FILE_PRIVATE || !(vma->prot & 4) || vma->path[0] != '/' || strstr(vma->path, " (deleted)"))
			continue;
		const char *slash = strrchr(vma->path, '/');
		snprintf(path, sizeof path, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, pid, vma->start, vma->end);
		if (strncmp(slash + 1, "libjemalloc", 11) == 0 || holds_jemalloc(path))
			return vma->path;
	}
	return NULL;
}

/* Replacing fails in its midst where the kernel has no room for a mapping: a run of changed pages in a mapping of a file makes two more. */
static void refuse_mappings(const struct view *view)
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
static void refuse_overlaps(const struct deflation *d, const struct view *view)
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
static void refuse_sharers(const struct deflation *d, const struct view *view)
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

static void refuse_unfit(const struct deflation *d, const struct view *view)
{
	struct statvfs where;
	if (fstatvfs(SWAP_FD, &where) == 0 && (where.f_flag & ST_NOEXEC))
		refuse("its memory may hold code, and the directory for it is mounted noexec");
	for (size_t i = 0; i < view->vma_count; i++)
		if (view->vmas[i].watched)
			refuse("its memory is watched by a userfaultfd");
	const char *allocator = allocator_that_trusts_zeros(d->target->pid, view->vmas, view->vma_count);
	if (allocator)
		refuse("its allocator (jemalloc, in %s) relies on zeros where memory was given back, and memory that is a file gives its bytes back", allocator);
}

/* ---- the process itself ---- */

static void nothing(void *context, const struct scan_region *range)
{
	(void)context;
	(void)range;
}

/* False when a request came. Its main thread may need a moment to come back to its read: on a busy machine it waits for a processor. */
static bool stop(struct deflation *d, bool all)
{
	/* A function stands still while this works: nothing else on the machine is more urgent. Without the right, it is slower. */
	setpriority(PRIO_PROCESS, 0, -20);
	for (int i = 0; i < STOP_TRIES && !cancelled; i++) {
		uint64_t began;
		if (stop_in_place(d->target, all, &began)) {
			d->stopped_ns -= began;
			return true;
		}
		usleep(STOP_WAIT_US);
	}
	if (!cancelled)
		refuse("its main thread does not wait for a request");
	return false;
}

static void go_on(struct deflation *d)
{
	release_all(d->target);
	d->stopped_ns += clock_ns(CLOCK_MONOTONIC);
	setpriority(PRIO_PROCESS, 0, 0);
}

/* From here on the kernel notes which pages are written. False when a request came first. */
static bool arm(struct deflation *d, const struct view *view)
{
	if (!stop(d, false))
		return false;
	d->uffd = track_make(d->target, 0);
	go_on(d);
	for (size_t i = 0; i < view->vma_count; i++) {
		const struct vma *vma = &view->vmas[i];
		if (left_alone(vma) || vma->shared || vma->kind == FILE_SHARED)
			continue;
		/* A mapping that is gone by now, or another: what is not registered counts as written. */
		if (track_mapping(d->uffd, vma))
			track_written(d->pagemap, vma, nothing, NULL);
	}
	return true;
}

/* Unread bytes in its control socket: a request that it could not take because it is stopped. */
static bool request_waits(struct deflation *d)
{
	static int control = -2;
	int bytes = 0;
	if (control == -2)
		control = take_descriptor(d->target->pid, d->target->control_fd);
	return cancelled || (control >= 0 && ioctl(control, FIONREAD, &bytes) == 0 && bytes > 0);
}

/*
 * The page in which run_script works lies in the husk's zone, which no function uses. Descriptor and message for recvmsg lie in it, too.
 */
enum { MESSAGE_AT = 0, PAIR_AT = 64, VECTOR_AT = 72, BYTE_AT = 88, CONTROL_AT = 96, ACTION_AT = 256, HEAD_BYTES = 4096 };
struct workshop {
	uint64_t at, bytes;
	int theirs[2]; /* of a socket pair; -1: none */
	int swap;      /* the file, in the process */
};

static long do_one(struct deflation *d, long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t e, uint64_t f, uint64_t g)
{
	return inject(d->target, &d->target->threads[0], nr, (uint64_t[6]){ a, b, c, e, f, g });
}

/* Nothing of it may stay in a process that goes on. */
static void leave_workshop(struct deflation *d, struct workshop *shop)
{
	for (int i = 0; i < 2; i++)
		if (shop->theirs[i] >= 0)
			do_one(d, SYS_close, (uint64_t)shop->theirs[i], 0, 0, 0, 0, 0);
	if (shop->swap >= 0)
		do_one(d, SYS_close, (uint64_t)shop->swap, 0, 0, 0, 0, 0);
	do_one(d, SYS_munmap, shop->at, shop->bytes, 0, 0, 0, 0);
}

static _Noreturn void give_up(struct deflation *d, struct workshop *shop, const char *what, long result)
{
	leave_workshop(d, shop);
	errno = result < 0 ? (int)-result : errno;
	die("%s: %s", what, strerror(errno));
}

/* The file gets into the process by a socket pair that it makes and whose other end is taken over: its own sockets are not touched. */
static void enter_workshop(struct deflation *d, struct workshop *shop, size_t calls)
{
	*shop = (struct workshop){ .at = HUSK_WORKSHOP_AT, .bytes = (HEAD_BYTES + SCRIPT_TABLE_AT + calls * sizeof(struct script_call) + PAGE - 1) & ~(PAGE - 1),
				   .theirs = { -1, -1 }, .swap = -1 };
	long at = do_one(d, SYS_mmap, shop->at, shop->bytes, PROT_READ | PROT_WRITE | PROT_EXEC,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0);
	if (at != (long)shop->at)
		die("cannot work in the process: %s", strerror(at < 0 ? (int)-at : EEXIST));
	long result = do_one(d, SYS_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, shop->at + PAIR_AT, 0, 0);
	if (result < 0 || pread(d->mem, shop->theirs, sizeof shop->theirs, (off_t)(shop->at + PAIR_AT)) != sizeof shop->theirs)
		give_up(d, shop, "cannot hand the file to the process", result);
	int mine = take_descriptor(d->target->pid, shop->theirs[0]);
	char name[32];
	snprintf(name, sizeof name, "/proc/self/fd/%d", SWAP_FD);
	int readable = open(name, O_RDONLY | O_CLOEXEC); /* private mappings need no more */
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec byte = { "", 1 };
	struct msghdr message = { .msg_iov = &byte, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	*CMSG_FIRSTHDR(&message) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &readable, sizeof readable);
	if (mine < 0 || readable < 0 || sendmsg(mine, &message, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
		give_up(d, shop, "cannot hand the file to the process", 0);
	close(mine);
	close(readable);
	struct msghdr theirs = { .msg_iov = (void *)(shop->at + VECTOR_AT), .msg_iovlen = 1, .msg_control = (void *)(shop->at + CONTROL_AT),
				 .msg_controllen = sizeof control };
	struct iovec vector = { (void *)(shop->at + BYTE_AT), 1 };
	if (pwrite(d->mem, &theirs, sizeof theirs, (off_t)(shop->at + MESSAGE_AT)) != sizeof theirs ||
	    pwrite(d->mem, &vector, sizeof vector, (off_t)(shop->at + VECTOR_AT)) != sizeof vector)
		give_up(d, shop, "cannot write into the process", 0);
	result = do_one(d, SYS_recvmsg, (uint64_t)shop->theirs[1], shop->at + MESSAGE_AT, MSG_CMSG_CLOEXEC | MSG_DONTWAIT, 0, 0, 0);
	if (result != 1 || pread(d->mem, &control, sizeof control, (off_t)(shop->at + CONTROL_AT)) != sizeof control)
		give_up(d, shop, "cannot hand the file to the process", result);
	memcpy(&shop->swap, (char *)&control + CMSG_LEN(0), sizeof shop->swap);
}
_Static_assert(sizeof(struct msghdr) <= PAIR_AT, "message");

static struct script_call call(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t e, uint64_t f, uint64_t g)
{
	return (struct script_call){ .nr = (uint64_t)nr, .args = { a, b, c, e, f, g } };
}

/*
 * What a thread touches before it sleeps again in what it was stopped in: the kernel writes its rseq area and reads its futex. A
 * private copy of that page now spares the dozens of neighbours that a read fault would map with it.
 */
static void touch(struct deflation *d, uint64_t address)
{
	uint32_t word;
	if (address && pread(d->mem, &word, sizeof word, (off_t)(address & ~3ULL)) == sizeof word)
		(void)!pwrite(d->mem, &word, sizeof word, (off_t)(address & ~3ULL));
}

static void keep_threads(struct deflation *d)
{
	enum { R_ORIG_RAX = 15, R_RDI = 14 };
	for (int i = 0; i < d->target->thread_count; i++) {
		struct thread *thread = &d->target->threads[i];
		touch(d, thread->rseq);
		if (thread->original_regs[R_ORIG_RAX] == SYS_futex)
			touch(d, thread->original_regs[R_RDI]);
	}
}

/* Private pages in the parts that are to be kept, by address. */
static void find_held(struct deflation *d, const struct view *view)
{
	for (size_t i = 0; i < view->piece_count && d->kept_count; i++) {
		const struct piece *piece = &view->pieces[i];
		size_t k = 0;
		for (size_t j = 0; piece->mapped && j < piece->range_count; j++) {
			uint64_t start = piece->ranges[j].start - piece->start + piece->offset;
			uint64_t end = piece->ranges[j].end - piece->start + piece->offset, to_address = piece->start - piece->offset;
			while (k > 0 && d->kept[k - 1].end > start)
				k--;
			for (; k < d->kept_count && d->kept[k].start < end; k++) {
				uint64_t from = d->kept[k].start > start ? d->kept[k].start : start;
				uint64_t to = d->kept[k].end < end ? d->kept[k].end : end;
				if (from >= to)
					continue;
				d->held = grow(d->held, d->held_count, &d->held_room, sizeof *d->held);
				d->held[d->held_count++] = (struct range){ from + to_address, to + to_address, false };
			}
		}
	}
}

/* Up to `end`, the first part from `*at` on that is not held; empty when there is none. */
static struct range next_free(const struct deflation *d, uint64_t *at, uint64_t end)
{
	struct range free = { *at, end, false };
	for (size_t i = 0; i < d->held_count && d->held[i].start < end; i++) {
		if (d->held[i].end <= free.start)
			continue;
		if (d->held[i].start > free.start) {
			free.end = d->held[i].start;
			break;
		}
		free.start = d->held[i].end;
	}
	*at = free.end;
	return free;
}

static void remap(struct deflation *d, const struct view *view)
{
	size_t count = 0;
	for (int i = 0; i < d->target->thread_count; i++)
		read_rseq(&d->target->threads[i]);
	find_held(d, view);
	size_t room = view->piece_count + view->guard_count + 2 * view->vma_count + d->held_count + 1;
	struct script_call *calls = malloc(room * sizeof *calls);
	if (!calls)
		die("out of memory");
	struct workshop shop;
	enter_workshop(d, &shop, room);
	for (size_t i = 0; i < view->piece_count; i++) {
		const struct piece *piece = &view->pieces[i];
		if (!piece->mapped)
			calls[count++] = call(SYS_mmap, piece->start, piece->end - piece->start, (uint64_t)piece->prot, MAP_PRIVATE | MAP_FIXED,
					      (uint64_t)shop.swap, piece->offset);
	}
	size_t mapped = count;
	/*
	 * One call for all mappings between two that stay. Unmapped addresses between them are skipped (ENOMEM says so). From now on a
	 * fault brings its own page, of the interpreter's files too: what else will be needed is known from the recording, and megabytes
	 * around it would be guesses. (Since Linux 6.16 the kernel heeds that in no executable mapping.)
	 */
	for (size_t i = 0; i < view->vma_count; i++) {
		if (left_alone(&view->vmas[i]))
			continue;
		uint64_t start = view->vmas[i].start, end = view->vmas[i].end;
		while (i + 1 < view->vma_count && !left_alone(&view->vmas[i + 1]) &&
		       (view->vmas[i + 1].start >= HUSK_ZONE_END) == (start >= HUSK_ZONE_END))
			end = view->vmas[++i].end;
		calls[count++] = call(SYS_madvise, start, end - start, MADV_RANDOM, 0, 0, 0);
		for (struct range free = next_free(d, &start, end); free.start < free.end; free = next_free(d, &start, end))
			calls[count++] = call(SYS_madvise, free.start, free.end - free.start, MADV_DONTNEED, 0, 0, 0);
	}
	for (size_t i = 0; i < view->guard_count; i++)
		calls[count++] = call(SYS_madvise, view->guards[i].start, view->guards[i].end - view->guards[i].start, MADV_GUARD_INSTALL, 0, 0, 0);
	/* The script ends in a breakpoint. Where SIGTRAP is ignored, it would be ignored no more. */
	long known = d->target->steps ? 0 : do_one(d, SYS_rt_sigaction, SIGTRAP, 0, shop.at + ACTION_AT, 8, 0, 0);
	if (known != 0)
		give_up(d, &shop, "cannot read the action of SIGTRAP", known);
	no_way_back(true);
	run_script(d->target, d->mem, shop.at + HEAD_BYTES, calls, count);
	if (!d->target->steps)
		do_one(d, SYS_rt_sigaction, SIGTRAP, shop.at + ACTION_AT, 0, 8, 0, 0);
	for (size_t i = 0; i < count; i++) {
		bool well = i < mapped ? calls[i].result == (int64_t)calls[i].args[0] : calls[i].result == 0 || calls[i].result == -ENOMEM;
		if (!well)
			die("the kernel refused to replace its memory at 0x%" PRIx64 ": %s", calls[i].args[0], strerror((int)-calls[i].result));
	}
	leave_workshop(d, &shop);
	keep_threads(d);
	no_way_back(false);
	free(calls);
}

/* ---- the whole ---- */

/* Data where no mapping is any more, or never was because a request came. */
static void clear_unused(struct deflation *d, const struct view *kept)
{
	memset(d->cells, 0, sizeof d->cells);
	for (size_t i = 0; i < kept->vma_count; i++)
		if (in_swap(d, &kept->vmas[i]))
			take_cells(d, kept->vmas[i].offset, kept->vmas[i].end - kept->vmas[i].start);
	for (off_t at = 0; (at = lseek(SWAP_FD, at, SEEK_DATA)) >= 0;) {
		uint64_t cell = (uint64_t)at / CELL_BYTES;
		if (cell < CELLS_MAX && !taken(d, cell))
			punch(cell * CELL_BYTES, CELL_BYTES);
		at = (off_t)((cell + 1) * CELL_BYTES);
	}
}

static uint64_t resident_bytes(pid_t pid)
{
	char path[64], line[256];
	uint64_t total = 0;
	unsigned long kib;
	snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
	FILE *file = fopen(path, "re");
	while (file && fgets(line, sizeof line, file))
		if (sscanf(line, "Private_Clean: %lu", &kib) == 1 || sscanf(line, "Private_Dirty: %lu", &kib) == 1)
			total += kib * 1024ULL;
	if (file)
		fclose(file);
	return total;
}

static void page_out(int pidfd, const struct iovec *parts, size_t *count)
{
	if (*count)
		(void)!syscall(SYS_process_madvise, pidfd, parts, *count, MADV_PAGEOUT, 0);
	*count = 0;
}

/*
 * Threads that were interrupted in epoll_wait or the like touched a few pages when they went back to sleep, and the kernel mapped
 * their neighbours. Those are clean: they go again, without another stop. A kernel that cannot do it leaves them.
 */
static void drop_neighbours(struct deflation *d, const struct view *now)
{
	struct iovec parts[256];
	size_t count = 0;
	int pidfd = (int)syscall(SYS_pidfd_open, d->target->pid, 0);
	for (size_t i = 0; i < now->vma_count && pidfd >= 0 && !cancelled; i++) {
		uint64_t at = now->vmas[i].start, end = in_swap(d, &now->vmas[i]) ? now->vmas[i].end : at;
		for (struct range free = next_free(d, &at, end); free.start < free.end && !cancelled; free = next_free(d, &at, end)) {
			parts[count++] = (struct iovec){ (void *)free.start, free.end - free.start };
			if (count == sizeof parts / sizeof parts[0])
				page_out(pidfd, parts, &count);
		}
	}
	page_out(pidfd, parts, &count);
	if (pidfd >= 0)
		close(pidfd);
}

static int report(struct deflation *d, const struct view *view, bool done)
{
	struct view now = { 0 };
	now.vma_count = read_vmas(d->target->pid, &now.vmas, VMAS_FLAGS);
	clear_unused(d, &now);
	/* After the process goes on: a request that comes now does not wait for the disk. */
	if (fdatasync(SWAP_FD) != 0)
		die("cannot write the memory to disk: %s", strerror(errno));
	if (done)
		drop_neighbours(d, &now);
	posix_fadvise(SWAP_FD, 0, 0, POSIX_FADV_DONTNEED);
	struct stat is;
	if (fstat(SWAP_FD, &is) != 0)
		die("cannot look at the file: %s", strerror(errno));
	printf("{\"ok\":true,\"cancelled\":%s,\"stoppedUs\":%" PRIu64 ",\"writtenPages\":%" PRIu64 ",\"hibernatedBytes\":%" PRIu64
	       ",\"residentBytes\":%" PRIu64 ",\"mappings\":%zu",
	       done ? "false" : "true", d->stopped_ns / 1000, done ? d->written_pages : 0, (uint64_t)is.st_blocks * 512,
	       resident_bytes(d->target->pid), now.vma_count);
	if (done && fclose(view->swap_present) == 0 && fclose(view->swap_written) == 0 && fclose(view->file_present) == 0)
		printf(",\"touched\":[%s],\"written\":[%s],\"files\":[%s]", view->swap_text, view->written_text, view->file_text);
	printf("}\n");
	return 0;
}

static void read_kept(struct deflation *d, const char *text)
{
	for (char *next = NULL; *text && d->kept_count < KEPT_MAX; text = *next ? next + 1 : next) {
		uint64_t start = strtoull(text, &next, 10);
		uint64_t bytes = *next == ',' ? strtoull(next + 1, &next, 10) : 0;
		uint64_t last = d->kept_count ? d->kept[d->kept_count - 1].end : 0;
		if (!bytes || start < last || (start | bytes) % PAGE || (*next && *next != ','))
			die("kept= wants offsets and lengths of whole pages, in order");
		d->kept[d->kept_count++] = (struct range){ start, start + bytes, false };
	}
}

int deflate(struct target *target, int argc, char **argv)
{
	struct deflation d = { .target = target, .mem = -1, .pagemap = -1, .uffd = -1 };
	struct view first = { 0 }, running = { 0 }, stopped = { 0 };
	char path[64];
	sigaction(SIGTERM, &(struct sigaction){ .sa_handler = on_term }, NULL);
	target->pid = atoi(argv[2]);
	target->control_fd = atoi(argv[3]);
	if (argc > 4 && strncmp(argv[4], "kept=", 5) == 0)
		read_kept(&d, argv[4] + 5);
	if (fstat(SWAP_FD, &d.swap) != 0)
		die("descriptor %d is no file: %s", SWAP_FD, strerror(errno));
	d.file_bytes = (uint64_t)d.swap.st_size;
	snprintf(path, sizeof path, "/proc/%d/pagemap", target->pid);
	d.pagemap = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof path, "/proc/%d/mem", target->pid);
	d.mem = open(path, O_RDWR | O_CLOEXEC);
	if (d.pagemap < 0 || d.mem < 0)
		die("cannot open the memory of the process: %s", strerror(errno));

	first.text = read_maps(target->pid);
	first.vma_count = read_vmas(target->pid, &first.vmas, VMAS_FLAGS);
	refuse_unfit(&d, &first);
	if (!arm(&d, &first))
		return report(&d, NULL, false);
	refuse_sharers(&d, &first);
	refuse_overlaps(&d, &first);
	look(&d, &running, &first);
	refuse_mappings(&running);
	settle_places(&d, &running, NULL);
	for (size_t i = 0; i < running.piece_count && !cancelled; i++)
		copy_piece(&d, &running.pieces[i], !running.pieces[i].mapped);
	if (!cancelled && fdatasync(SWAP_FD) != 0)
		die("cannot write the memory to disk: %s", strerror(errno));
	copy_rounds(&d, &running);

	if (!stop(&d, true))
		return report(&d, NULL, false);
	look(&d, &stopped, &running);
	refuse_mappings(&stopped);
	refuse_overlaps(&d, &stopped);
	refuse_sharers(&d, &stopped);
	settle_places(&d, &stopped, &running);
	copy_rest(&d, &stopped);
	bool done = !request_waits(&d);
	if (done)
		remap(&d, &stopped);
	go_on(&d);
	close(d.uffd);
	return report(&d, &stopped, done);
}
