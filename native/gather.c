/*
 * How a page space lies in the page cache. A fault in a private file mapping maps the pages around it that the page cache has, 16 at most, and
 * that costs by the pieces they lie in: in one piece they are had for little more than a single page, as 16 single ones they take most of the fault. A piece
 * of 2 MiB is mapped whole, by one entry, where the mapping lies at the same place within 2 MiB.
 *
 *   extractor gather FILE    descriptor 3: 64-bit pairs of offset and length, ascending: what holds data in them, and in the rest of the windows of
 *                            64 KiB that they touch, shall lie in as few pieces as it can. What is not in the page cache is read
 *
 * Theory of operation. Reads bring single pages, as a rule; a write makes pieces as large as it is itself and its place is aligned. So does a freeze,
 * which writes what it stores run by run. Where reads brought single pages, each run is read, dropped, and the same bytes are written
 * again. On the disk they are as they were, whatever becomes of the machine meanwhile; only the file's times change. Somebody who maps a page keeps it from being dropped, and
 * it stays single. Some file systems know single pages only (ext4 before Linux 6.16): /proc/kpageflags tells that after the first runs, and the others are left alone.
 *
 * Tried before: blocks of 2 MiB read through a mapping with MADV_HUGEPAGE. That gathers nothing smaller, takes 2 MiB of memory for a block that is half
 * full, and the next block along with it.
 */
#include "extractor.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a fault maps around itself (mm/memory.c: fault_around_bytes). */
#define WINDOW ((off_t)64 << 10)
#define PIECE_MAX ((off_t)2 << 20)
#define PARTS_FD 3
#define GATHER_NICE 10
/* Memory may be too scattered for the first ones. */
#define LOOKS_MAX 8
#define KPF_COMPOUND ((uint64_t)3 << 15)
#define PAGEMAP_FRAME (((uint64_t)1 << 55) - 1)

struct gather {
	const char *path;
	int fd;
	const struct part *parts;
	size_t part_count;
	size_t runs;
	/* A run came out in pieces; before the first one, how many were looked at. */
	bool works;
	unsigned looked;
	uint8_t run[PIECE_MAX] __attribute__((aligned(4096)));
};

const struct part *map_parts(size_t *count)
{
	struct stat list;
	if (fstat(PARTS_FD, &list) != 0 || list.st_size == 0 || list.st_size % (off_t)sizeof(struct part) != 0)
		die("descriptor %d holds no parts", PARTS_FD);
	const struct part *parts = mmap(NULL, (size_t)list.st_size, PROT_READ, MAP_PRIVATE, PARTS_FD, 0);
	if (parts == MAP_FAILED)
		die("cannot map the parts: %s", strerror(errno));
	*count = (size_t)list.st_size / sizeof(struct part);
	return parts;
}

/* Whether the page at that offset is part of a larger piece; yes where nobody can say. */
static bool in_piece(const struct gather *it, off_t offset)
{
	uint64_t frame = 0, flags = KPF_COMPOUND;
	const volatile uint8_t *at = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, it->fd, offset);
	if (at == MAP_FAILED)
		return true;
	(void)*at;
	int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	if (map >= 0 && kpageflags >= 0 && pread(map, &frame, sizeof frame, (off_t)((uintptr_t)at / PAGE * sizeof frame)) == sizeof frame &&
	    (frame & PAGEMAP_FRAME) != 0)
		(void)!pread(kpageflags, &flags, sizeof flags, (off_t)((frame & PAGEMAP_FRAME) * sizeof flags));
	if (map >= 0)
		close(map);
	if (kpageflags >= 0)
		close(kpageflags);
	munmap((void *)(uintptr_t)at, PAGE);
	return (flags & KPF_COMPOUND) != 0;
}

static void ask_for(struct gather *it, off_t at, size_t bytes)
{
	/* In one call the kernel takes no more than the device reads ahead. */
	for (size_t done = 0; done < bytes; done += (size_t)WINDOW)
		posix_fadvise(it->fd, at + (off_t)done, bytes - done < (size_t)WINDOW ? (off_t)(bytes - done) : WINDOW, POSIX_FADV_WILLNEED);
}

static void write_again(struct gather *it, off_t at, size_t bytes)
{
	if (bytes <= PAGE || (!it->works && it->looked >= LOOKS_MAX))
		return;
	if (pread(it->fd, it->run, bytes, at) != (ssize_t)bytes)
		die("cannot read %s: %s", it->path, strerror(errno));
	posix_fadvise(it->fd, at, (off_t)bytes, POSIX_FADV_DONTNEED);
	if (pwrite(it->fd, it->run, bytes, at) != (ssize_t)bytes)
		die("cannot write %s: %s", it->path, strerror(errno));
	/* Two pages, the first of them even, can be one piece. */
	off_t pair = (at + (off_t)PAGE) & ~(2 * (off_t)PAGE - 1);
	if (!it->works && pair + 2 * (off_t)PAGE <= at + (off_t)bytes) {
		it->works = in_piece(it, pair);
		it->looked++;
	}
	it->runs++;
}

/* What holds data in the windows that the parts touch, each byte once, in runs that lie in one block of PIECE_MAX. */
static void each_run(struct gather *it, void (*visit)(struct gather *it, off_t at, size_t bytes))
{
	for (size_t i = 0; i < it->part_count; i++) {
		off_t from = (off_t)it->parts[i].offset & ~(WINDOW - 1);
		off_t end = ((off_t)(it->parts[i].offset + it->parts[i].bytes) + WINDOW - 1) & ~(WINDOW - 1);
		/* Windows side by side are one run. */
		for (; i + 1 < it->part_count && (off_t)it->parts[i + 1].offset <= end; i++) {
			off_t next = ((off_t)(it->parts[i + 1].offset + it->parts[i + 1].bytes) + WINDOW - 1) & ~(WINDOW - 1);
			if (next > end)
				end = next;
		}
		for (off_t at = lseek(it->fd, from, SEEK_DATA); at >= 0 && at < end; at = lseek(it->fd, at, SEEK_DATA)) {
			off_t hole = lseek(it->fd, at, SEEK_HOLE);
			if (hole < 0 || hole > end)
				hole = end;
			for (off_t next; at < hole; at = next) {
				next = (at & ~(PIECE_MAX - 1)) + PIECE_MAX;
				if (next > hole)
					next = hole;
				visit(it, at, (size_t)(next - at));
			}
		}
	}
}

int gather(const char *path)
{
	static struct gather it;
	/* Nobody waits for it who could not go on without. */
	setpriority(PRIO_PROCESS, 0, GATHER_NICE);
	it.path = path;
	it.fd = open(path, O_RDWR | O_CLOEXEC);
	if (it.fd < 0)
		die("cannot open %s: %s", path, strerror(errno));
	it.parts = map_parts(&it.part_count);
	/* Pages that wait to be written cannot be dropped. */
	if (fdatasync(it.fd) != 0)
		die("cannot flush %s: %s", path, strerror(errno));
	/* Reads what it is asked for, and not what lies behind. */
	posix_fadvise(it.fd, 0, 0, POSIX_FADV_RANDOM);
	each_run(&it, ask_for);
	each_run(&it, write_again);
	/* Now, and not when somebody measures or waits for the disk. */
	if (fdatasync(it.fd) != 0)
		die("cannot flush %s: %s", path, strerror(errno));
	printf("{\"ok\":true,\"runs\":%zu}\n", it.runs);
	return 0;
}
