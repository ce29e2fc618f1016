/*
 * What a process has, at one moment, of memory that hibernation replaces, and where in the file it lies (part of the extractor).
 *
 * The file is an array of cells of 4 GiB. A range of memory begins in a cell of its own, at its own place within 2 MiB, and what
 * follows it up to the next cell is a hole: memory that grows (mremap) finds zeros. Cells of memory that is gone are
 * used again.
 */
#include "deflate.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

bool in_swap(const struct deflation *d, const struct vma *vma)
{
	return vma->inode == d->swap.st_ino && makedev(vma->major, vma->minor) == d->swap.st_dev;
}

/* Stays as it is: small, or not ours to replace. */
bool left_alone(const struct vma *vma)
{
	return vma->kind == STACK || vma->kind == VDSO || vma->wipe || vma->stays;
}

static void take_cells(struct deflation *d, uint64_t offset, uint64_t bytes)
{
	for (uint64_t cell = offset / CELL_BYTES; cell <= (offset + bytes - 1) / CELL_BYTES && cell < CELLS_MAX; cell++)
		d->cells[cell / 64] |= 1ULL << (cell % 64);
}

bool taken(const struct deflation *d, uint64_t cell)
{
	return d->cells[cell / 64] >> (cell % 64) & 1;
}

void punch(uint64_t offset, uint64_t bytes)
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
		bound_guards(view->guard_count + 1);
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

void look(struct deflation *d, struct view *view, const struct view *earlier)
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
void settle_places(struct deflation *d, struct view *view, const struct view *earlier)
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
