/* Memory on its way into an image: memory.c collects and copies it, store.c writes it. */
#pragma once
#include "memory.h"

/* What `vma.parent` says: whose file is mapped as memory. */
enum { NO_PARENT, IMAGE, BASE, SWAP, PARENTS };

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
		char gone[PATH_BYTES]; /* how its mappings are called when it was removed */
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

void add_run(struct region *region, struct run run);
