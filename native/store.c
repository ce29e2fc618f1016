/*
 * Storing memory (part of the extractor): the page space, its digest, and what the facts say of both.
 *
 * Layout of a page space. Every region (mappings of the same kind that touch and have the same protection are one
 * region, so that generations do not multiply them) that holds pages gets a slot of the sparse file: a linear range,
 * page at slot + (address - start). Slots are far larger than regions: a mapping that grows (mremap) finds
 * holes, which read as zeros, and never another region's bytes. Zero pages are holes.
 *
 * Digest: over (offset, content) of every page that is not zero, in order of offset. Any change within one
 * 8-byte word changes it for certain (each step is a bijection of the state), others with probability 1 - 2^-64.
 */
#include "dump.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLOT_SHIFT_MAX 34
#define SLOT_SHIFT_MIN 28
#define COPY_BYTES (1ULL << 20)

static const char *const kind_names[] = { "anon", "heap", "stack", "file", "shared", "overlay", "vdso", "common", "backed" };

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

static int by_address(const void *left, const void *right)
{
	const struct run *a = left, *b = right;
	return a->address < b->address ? -1 : a->address > b->address;
}

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
		pace();
		ssize_t put = pwrite(fd, bytes, portion(count), (off_t)offset);
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
	int fd = openat(image_dir, "pages", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
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
		if (region->kind == BACKED) {
			json_hex("offset", region->offset);
			if (region->vma->fd >= 0)
				json_int("fd", region->vma->fd);
			else
				json_path("path", region->vma->path);
			if (region->vma->writes)
				json_int("writes", 1);
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
