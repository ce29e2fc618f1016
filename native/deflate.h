/* Hibernation (deflate.c), and its parts: what there is (view.c), what cannot be (unfit.c), replacing it (replace.c). */
#pragma once
#include "track.h"

/* The file of the memory: it belongs to this process alone. */
#define SWAP_FD 3
#define CELL_BYTES (4ULL << 30)
#define CELLS_MAX (PAGE_SPACE_BYTES_MAX / CELL_BYTES)
#define KEPT_MAX 512
#define UNUSED_MAX 16

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
	enum tracking tracking;
	struct stat swap;
	uint64_t cells[(CELLS_MAX + 63) / 64];
	uint64_t file_bytes, written_pages, limit_bytes;
	uint64_t stopped_ns;
	struct range kept[KEPT_MAX]; /* offsets */
	size_t kept_count;
	const char *unused[UNUSED_MAX]; /* names of libraries whose jemalloc has given out nothing, as the runtime says */
	int unused_count;
	struct range *held; /* addresses of what is kept */
	size_t held_count, held_room;
	/* while one mapping is scanned */
	struct view *view;
	const struct vma *vma;
	uint64_t present[2];
	bool present_any;
};

/* view.c */
bool in_swap(const struct deflation *d, const struct vma *vma);
/* Stays as it is: small, or not ours to replace. */
bool left_alone(const struct vma *vma);
bool taken(const struct deflation *d, uint64_t cell);
void punch(uint64_t offset, uint64_t bytes);
/* `earlier`: what was seen before, whose mappings are not looked at again where they are the same; NULL: nothing. */
void look(struct deflation *d, struct view *view, const struct view *earlier);
/* Gives every piece its place: where it is, where it was copied to while the process ran, or a new one. */
void settle_places(struct deflation *d, struct view *view, const struct view *earlier);

/* unfit.c: each refuses by name, and returns where there is nothing to refuse. */
void refuse_unfit(const struct deflation *d, const struct view *view);
void refuse_beyond_limit(const struct deflation *d);
void refuse_mappings(const struct view *view);
void refuse_overlaps(const struct deflation *d, const struct view *view);
void refuse_sharers(const struct deflation *d, const struct view *view);
/* Its main thread is held. */
void refuse_forbidden(const struct deflation *d);

/* replace.c. All is stopped, and copied. */
void remap(struct deflation *d, const struct view *view);
/* Up to `end`, the first part from `*at` on that is not held; empty when there is none. */
struct range next_free(const struct deflation *d, uint64_t *at, uint64_t end);
