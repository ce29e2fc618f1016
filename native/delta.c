/*
 * What an image shares with its base (part of the extractor; docs/design/base-images.md).
 *
 * The process was thawed from an image of its bare runtime, the base, and has loaded a function since. Pages that still hold what
 * the base's page space holds at that address need not be stored again. Each region is cut into pieces: such that are
 * mapped from the image's own page space, and such that stay mapped from the base's. Contents are compared, not dirtiness:
 * a page that was written and holds the same bytes again is shared, too.
 *
 * A piece is one mapping of every start. So a run of shared pages between two changed ones becomes a piece only if it holds more
 * than SHARED_PAGES_MIN pages; shorter ones are stored with their neighbours. An image that would save less than SAVED_PERCENT_MIN
 * of its pages is stored whole.
 */
#include "extractor.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define SHARED_PAGES_MIN 8
/* Of all pages, the part that must be saved: an image of which most is its own gains little, and pays for every mapping all the same. */
#define SAVED_PERCENT_MIN 20
/* A page's class is a byte; larger regions (reserved for WebAssembly, hardly ever filled) are stored whole. */
#define REGION_PAGES_MAX (4ULL << 20)
/* A slot is at least this long (SLOT_SHIFT_MIN): within it, what follows a region is a hole. */
#define TAIL_BYTES (256ULL << 20)

static struct {
	int fd;
	struct base_extent *extents;
	size_t count;
} base = { .fd = -1 };

void base_open(const char *pages, const char *layout)
{
	base.fd = open(pages, O_RDONLY | O_CLOEXEC);
	if (base.fd < 0)
		die("cannot open the base image's pages %s: %s", pages, strerror(errno));
	size_t room = 0;
	const char *at = layout;
	struct base_extent extent;
	int used;
	while (sscanf(at, "%" SCNx64 "-%" SCNx64 ":%" SCNx64 "%n", &extent.start, &extent.end, &extent.slot, &used) == 3) {
		if (base.count == room) {
			room = room ? room * 2 : 64;
			base.extents = realloc(base.extents, room * sizeof extent);
			if (!base.extents)
				die("out of memory");
		}
		base.extents[base.count++] = extent;
		at += used;
		if (*at == ',')
			at++;
	}
	if (*at)
		die("the layout of the base image is not one: %.40s", at);
}

static uint64_t later(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* The next range of [at, end) of the base that holds bytes. */
static bool next_data(uint64_t at, uint64_t end, uint64_t *from, uint64_t *to)
{
	off_t data = at < end ? lseek(base.fd, (off_t)at, SEEK_DATA) : -1;
	if (data < 0 && at < end && errno != ENXIO)
		die("cannot read the base image: %s", strerror(errno));
	if (data < 0 || (uint64_t)data >= end)
		return false;
	off_t hole = lseek(base.fd, data, SEEK_HOLE);
	*from = (uint64_t)data & ~(PAGE - 1);
	*to = hole < 0 ? end : earlier(end, ((uint64_t)hole + PAGE - 1) & ~(PAGE - 1));
	return true;
}

uint8_t *base_classes(uint64_t start, uint64_t end)
{
	bool touched = false;
	if (base.fd < 0 || (end - start) / PAGE > REGION_PAGES_MAX)
		return NULL;
	uint8_t *classes = calloc((end - start) / PAGE, 1);
	if (!classes)
		die("out of memory");
	for (size_t i = 0; i < base.count; i++) {
		const struct base_extent *extent = &base.extents[i];
		uint64_t from = later(start, extent->start), to = earlier(end, extent->end), data, hole;
		if (from >= to)
			continue;
		for (uint64_t at = extent->slot + (from - extent->start), last = at + (to - from); next_data(at, last, &data, &hole); at = hole) {
			uint64_t address = extent->start + (data - extent->slot);
			memset(classes + (address - start) / PAGE, PAGE_GONE, (hole - data) / PAGE);
			touched = true;
		}
	}
	if (touched)
		return classes;
	free(classes);
	return NULL;
}

void base_compare(uint8_t *classes, uint64_t start, uint64_t address, const uint8_t *bytes, uint64_t pages)
{
	static uint8_t page[PAGE] __attribute__((aligned(4096)));
	for (uint64_t i = 0; i < pages; i++) {
		uint8_t *class = &classes[(address - start) / PAGE + i];
		const uint8_t *now = bytes + i * PAGE;
		uint64_t at = address + i * PAGE;
		if (*class == PAGE_NONE) {
			for (size_t j = 0; j < PAGE && *class == PAGE_NONE; j++)
				if (now[j])
					*class = PAGE_CHANGED;
			continue;
		}
		for (size_t j = 0; j < base.count; j++) {
			const struct base_extent *extent = &base.extents[j];
			if (at < extent->start || at >= extent->end)
				continue;
			if (pread(base.fd, page, PAGE, (off_t)(extent->slot + (at - extent->start))) != (ssize_t)PAGE)
				die("cannot read the base image: %s", strerror(errno));
			*class = memcmp(page, now, PAGE) == 0 ? PAGE_SHARED : PAGE_CHANGED;
		}
	}
}

static void add_piece(struct cut **pieces, size_t *count, struct cut piece)
{
	if (piece.start >= piece.end)
		return;
	struct cut *last = *count ? &(*pieces)[*count - 1] : NULL;
	if (last && !last->from_base && !piece.from_base) {
		last->end = piece.end;
		return;
	}
	*pieces = realloc(*pieces, (*count + 1) * sizeof piece);
	if (!*pieces)
		die("out of memory");
	(*pieces)[(*count)++] = piece;
}

/* A mapping may grow in place of a copy (mremap) and finds what lies behind its piece in the file: that must be nothing. */
static bool ends_in_hole(const struct base_extent *extent, uint64_t end)
{
	uint64_t at = extent->slot + (end - extent->start), data, hole;
	return !next_data(at, at + TAIL_BYTES, &data, &hole);
}

size_t base_pieces(uint8_t *classes, uint64_t start, uint64_t end, struct cut **pieces)
{
	size_t count = 0;
	uint64_t done = start;
	*pieces = NULL;
	for (size_t i = 0; i < base.count; i++) {
		const struct base_extent *extent = &base.extents[i];
		uint64_t from = later(start, extent->start), to = earlier(end, extent->end);
		if (to == end && from < to && !ends_in_hole(extent, end))
			to -= PAGE;
		while (from < to) {
			uint64_t until = from, shared = 0;
			for (; until < to; until += PAGE) {
				uint8_t class = classes[(until - start) / PAGE];
				if (class == PAGE_CHANGED || class == PAGE_GONE)
					break;
				shared += class == PAGE_SHARED;
			}
			if (shared > SHARED_PAGES_MIN) {
				add_piece(pieces, &count, (struct cut){ .start = done, .end = from });
				add_piece(pieces, &count, (struct cut){ .start = from, .end = until, .from_base = true,
									  .slot = extent->slot + (from - extent->start) });
				for (uint64_t at = from; at < until; at += PAGE)
					if (classes[(at - start) / PAGE] == PAGE_SHARED)
						classes[(at - start) / PAGE] = PAGE_LEFT_OUT;
				done = until;
			}
			from = until + PAGE;
		}
	}
	add_piece(pieces, &count, (struct cut){ .start = done, .end = end });
	return count;
}

void base_count(const uint8_t *classes, uint64_t pages, uint64_t *shared, uint64_t *own)
{
	for (uint64_t i = 0; i < pages; i++) {
		*shared += classes[i] == PAGE_LEFT_OUT;
		*own += classes[i] == PAGE_CHANGED || classes[i] == PAGE_SHARED;
	}
}

bool base_pays(uint64_t shared, uint64_t own)
{
	return shared * 100 >= (shared + own) * SAVED_PERCENT_MIN;
}
