/*
 * Copying ahead (part of the extractor): most of the memory is copied while the process runs, so that it is stopped only for what
 * it wrote since (as live migration does: Clark et al., NSDI'05, pre-copy).
 *
 * A round asks the kernel which private pages were written since it last asked, which protects them again in the same step, and
 * copies them. A page that is written while it is copied counts as written, and the next round, or the stop, copies it again. So
 * what lies here may be torn or old, and still what counts is right: at the stop a page that was not written since is taken
 * from here, every other one is copied then.
 *
 * Pieces are where memory was copied to: sorted, disjoint, each with bytes of its own. Memory that went away leaves its piece
 * unused. One that could not be read while the process ran (its mapping went away at that moment) does not count, and what of it is
 * there at the stop is copied then.
 *
 * Stacks and memory of unusual kinds (vma.stays) are left to the stop, and so are changed pages in mappings of files.
 */
#include "ahead.h"
#include "track.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define ROUNDS_MAX 12
#define SMALL_BYTES (128ULL << 10)
#define IOVS 256
#define BATCH_BYTES (256ULL << 10)
/* Beyond twice what the process has. What it gives back keeps its copy, so this is what ends one that takes ever other memory. */
#define UNUSED_BYTES_MAX (64ULL << 20)

struct piece {
	uint64_t start, end;
	uint8_t *bytes;
	bool lost;
};

struct ahead {
	struct target *target;
	struct dump *dump;
	enum tracking tracking;
	int uffd, pagemap, mem;
	char *maps;
	struct vma *vmas;
	size_t vma_count;
	struct piece *pieces;
	size_t piece_count, piece_room;
	uint64_t piece_bytes, weighed_bytes; /* of all; when the process was last asked how much it has */
	size_t sorted; /* the first so many are; what a round adds follows them until it ends */
	/* of a round */
	struct iovec local[IOVS], remote[IOVS];
	size_t piece_of[IOVS];
	size_t pending;
	uint64_t pending_bytes, round_bytes, bytes;
	int rounds;
};

static bool trackable(const struct vma *vma)
{
	return !vma->shared && !vma->wipe && !vma->stays && vma->kind != STACK && vma->kind != VDSO && vma->kind != FILE_SHARED;
}

static void see_mappings(struct ahead *ahead, enum vma_flags flags)
{
	char *maps = read_maps(ahead->target->pid);
	if (ahead->maps && vmas_hold(ahead->vmas, ahead->vma_count, ahead->maps, maps)) {
		free(maps);
		return;
	}
	free(ahead->maps);
	ahead->maps = maps;
	/* The former list is not freed: regions point into it. It has grown by some mappings; this is a short life. */
	ahead->vma_count = read_vmas(ahead->target->pid, &ahead->vmas, flags);
	dump_identify(ahead->dump, ahead->target->pid, ahead->vmas, ahead->vma_count);
}

static void register_new(struct ahead *ahead)
{
	for (size_t i = 0; i < ahead->vma_count; i++) {
		struct vma *vma = &ahead->vmas[i];
		if (!vma->watched && trackable(vma) && dump_takes_pages(ahead->dump, vma)) {
			vma->watched = track_mapping(ahead->uffd, vma);
			pace();
		}
	}
}

struct ahead *ahead_arm(struct target *target, struct dump *dump)
{
	char path[64];
	struct ahead *ahead = calloc(1, sizeof *ahead);
	if (!ahead)
		die("out of memory");
	ahead->target = target;
	ahead->dump = dump;
	snprintf(path, sizeof path, "/proc/%d/pagemap", target->pid);
	ahead->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof path, "/proc/%d/mem", target->pid);
	ahead->mem = open(path, O_RDONLY | O_CLOEXEC);
	if (ahead->pagemap < 0 || ahead->mem < 0)
		die("cannot open the memory of the process: %s", strerror(errno));
	ahead->tracking = track_begin(target, &ahead->uffd);
	return ahead;
}

/* The piece that holds `address`, or the first behind it. */
static size_t find(const struct ahead *ahead, uint64_t address)
{
	size_t low = 0, high = ahead->sorted;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (ahead->pieces[middle].end <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void flush(struct ahead *ahead)
{
	if (ahead->pending && process_vm_readv(ahead->target->pid, ahead->local, ahead->pending, ahead->remote, ahead->pending, 0) !=
				      (ssize_t)ahead->pending_bytes)
		for (size_t i = 0; i < ahead->pending; i++)
			/* By this way memory is read, too, that the process itself must not read. */
			if (pread(ahead->mem, ahead->local[i].iov_base, ahead->local[i].iov_len, (off_t)ahead->remote[i].iov_base) !=
			    (ssize_t)ahead->local[i].iov_len)
				ahead->pieces[ahead->piece_of[i]].lost = true;
	ahead->round_bytes += ahead->pending_bytes;
	ahead->pending = 0;
	ahead->pending_bytes = 0;
	pace();
}

static void add_part(struct ahead *ahead, uint64_t start, uint64_t end, size_t of)
{
	const struct piece *piece = &ahead->pieces[of];
	ahead->piece_of[ahead->pending] = of;
	ahead->local[ahead->pending] = (struct iovec){ piece->bytes + (start - piece->start), end - start };
	ahead->remote[ahead->pending++] = (struct iovec){ (void *)start, end - start };
	ahead->pending_bytes += end - start;
	if (ahead->pending == IOVS || ahead->pending_bytes >= BATCH_BYTES)
		flush(ahead);
}

static void copy_written(void *context, const struct scan_region *range)
{
	struct ahead *ahead = context;
	size_t i = find(ahead, range->start);
	for (uint64_t at = range->start; at < range->end;) {
		const struct piece *piece = i < ahead->sorted ? &ahead->pieces[i] : NULL;
		uint64_t until = range->end;
		if (piece && piece->start <= at) {
			until = piece->end < until ? piece->end : until;
			add_part(ahead, at, until, i++);
		} else {
			if (piece && piece->start < until)
				until = piece->start;
			/* in parts, so that a request waits for none of them long */
			if (until - at > BATCH_BYTES)
				until = at + BATCH_BYTES;
			uint8_t *bytes = dump_room(ahead->dump, until - at);
			ahead->pieces = grow(ahead->pieces, ahead->piece_count, &ahead->piece_room, sizeof *ahead->pieces);
			ahead->pieces[ahead->piece_count++] = (struct piece){ at, until, bytes, false };
			ahead->piece_bytes += until - at;
			add_part(ahead, at, until, ahead->piece_count - 1);
		}
		at = until;
	}
}

static int by_start(const void *left, const void *right)
{
	const struct piece *a = left, *b = right;
	return a->start < b->start ? -1 : a->start > b->start;
}

/* Our memory is no function's, and a live freeze may wait as long as a request takes. */
static void bound_copies(struct ahead *ahead)
{
	if (ahead->piece_bytes < ahead->weighed_bytes + UNUSED_BYTES_MAX)
		return;
	if (ahead->piece_bytes > 2 * rollup_anonymous(ahead->target->pid) + 2 * UNUSED_BYTES_MAX)
		put_off("its memory changes too fast to be copied while it runs");
	ahead->weighed_bytes = ahead->piece_bytes;
}

uint64_t ahead_round(struct ahead *ahead)
{
	/* What is written from now on is copied at the stop, whatever is copied before. */
	if (ahead->tracking == TRACKED_ONCE && ahead->rounds > 0)
		return 0;
	see_mappings(ahead, ahead->rounds == 0 ? VMAS_REFUSING : VMAS_REFUSING_OTHERS);
	register_new(ahead);
	ahead->round_bytes = 0;
	for (size_t i = 0; i < ahead->vma_count; i++) {
		const struct vma *vma = &ahead->vmas[i];
		if (vma->watched)
			track_written(ahead->pagemap, vma, ahead->rounds == 0, copy_written, ahead);
	}
	flush(ahead);
	if (ahead->piece_count > ahead->sorted)
		qsort(ahead->pieces, ahead->piece_count, sizeof *ahead->pieces, by_start);
	ahead->sorted = ahead->piece_count;
	for (size_t i = 1; i < ahead->piece_count; i++)
		if (ahead->pieces[i - 1].end > ahead->pieces[i].start)
			die("bug: memory at 0x%" PRIx64 " was copied to two places", ahead->pieces[i].start);
	bound_copies(ahead);
	ahead->rounds++;
	ahead->bytes += ahead->round_bytes;
	return ahead->round_bytes;
}

void ahead_rounds(struct ahead *ahead)
{
	uint64_t last = ahead_round(ahead);
	for (int i = 1; i < ROUNDS_MAX && last > SMALL_BYTES; i++) {
		uint64_t now = ahead_round(ahead);
		if (i > 1 && now > last - last / 4)
			break;
		last = now;
	}
}

size_t ahead_vmas(struct ahead *ahead, struct vma **list)
{
	see_mappings(ahead, VMAS_REFUSING_OTHERS);
	*list = ahead->vmas;
	return ahead->vma_count;
}

uint64_t ahead_part(const struct ahead *ahead, uint64_t at, uint64_t end, uint8_t **bytes, bool *current)
{
	size_t i = find(ahead, at);
	const struct piece *piece = i < ahead->sorted ? &ahead->pieces[i] : NULL;
	*bytes = NULL;
	*current = false;
	if (!piece || piece->start >= end)
		return end;
	if (piece->start > at)
		return piece->start;
	end = piece->end < end ? piece->end : end;
	*bytes = piece->bytes + (at - piece->start);
	*current = !piece->lost;
	return end;
}

void ahead_end(struct ahead *ahead)
{
	/* One by one before all at once: each holds the process up for as long as its own pages take. */
	for (size_t i = 0; i < ahead->vma_count; i++)
		if (ahead->vmas[i].watched) {
			track_no_more(ahead->uffd, &ahead->vmas[i]);
			pace();
		}
	if (ahead->uffd >= 0)
		close(ahead->uffd);
	close(ahead->pagemap);
	close(ahead->mem);
}

uint64_t ahead_bytes(const struct ahead *ahead)
{
	return ahead->bytes;
}

int ahead_round_count(const struct ahead *ahead)
{
	return ahead->rounds;
}
