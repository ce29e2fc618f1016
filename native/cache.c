/*
 * The page cache as a cold-disk measurement needs it: what of a file is in memory, out with it, and how fast the device
 * reads without it.
 *
 *   extractor resident FILE…    pages of each file that are in the page cache
 *   extractor evict FILE…       the same, after writing back and dropping what can be dropped
 *   extractor fetch FILE…       the same, after reading all that holds data, and how many were lacking in all
 *   extractor bandwidth FILE    drops the file, reads it once with O_DIRECT; drops it again, reads it once through the cache
 *
 * Theory of operation. POSIX_FADV_DONTNEED drops neither dirty pages nor pages that some process maps, and says nothing about
 * either. So files are flushed first, and what is left is counted: the caller decides whether it is really cold. cachestat(2) (Linux
 * 6.5) counts without mapping anything; before it, mincore(2) over the parts that hold data (a page space is terabytes of
 * holes, and the cached zeros of a hole are not counted then). Inodes, directory entries and extents stay cached.
 */
#include "extractor.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Headers may be older than the kernel (asm-generic/unistd.h, linux/mman.h of Linux 6.5). */
#define NR_CACHESTAT 451
struct cachestat_range {
	uint64_t off, len;
};
struct cachestat {
	uint64_t cache, dirty, writeback, evicted, recently_evicted;
};

#define CHUNK ((uint64_t)1 << 30)
#define READ_BYTES ((size_t)4 << 20)

static uint64_t mincore_pages(int fd, const char *path, off_t from, off_t to)
{
	static unsigned char present[CHUNK / 4096];
	uint64_t pages = 0;
	for (off_t at = from & ~(off_t)(PAGE - 1); at < to; at += (off_t)CHUNK) {
		size_t bytes = (uint64_t)(to - at) < CHUNK ? (size_t)(to - at) : (size_t)CHUNK;
		void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, at);
		if (map == MAP_FAILED)
			die("cannot map %s: %s", path, strerror(errno));
		if (mincore(map, bytes, present) != 0)
			die("mincore of %s: %s", path, strerror(errno));
		for (size_t i = 0; i < (bytes + PAGE - 1) / PAGE; i++)
			pages += present[i] & 1;
		munmap(map, bytes);
	}
	return pages;
}

static uint64_t resident_pages(int fd, const char *path)
{
	struct cachestat_range whole = { 0, 0 };
	struct cachestat is;
	if (syscall(NR_CACHESTAT, fd, &whole, &is, 0) == 0)
		return is.cache;
	if (errno != ENOSYS)
		die("cachestat of %s: %s", path, strerror(errno));
	uint64_t pages = 0;
	for (off_t at = 0;;) {
		off_t data = lseek(fd, at, SEEK_DATA);
		off_t hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return pages;
		pages += mincore_pages(fd, path, data, hole);
		at = hole;
	}
}

static int open_file(const char *path, int flags)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | flags);
	if (fd < 0)
		die("cannot open %s: %s", path, strerror(errno));
	return fd;
}

static void drop(int fd, const char *path)
{
	if (fdatasync(fd) != 0)
		die("cannot flush %s: %s", path, strerror(errno));
	int error = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	if (error != 0)
		die("cannot drop %s from the page cache: %s", path, strerror(error));
}

static void fetch(int fd, const char *path)
{
	static uint8_t buffer[1 << 20];
	off_t hole = 0;
	for (off_t at; (at = lseek(fd, hole, SEEK_DATA)) >= 0;) {
		hole = lseek(fd, at, SEEK_HOLE);
		while (at < hole) {
			ssize_t got = pread(fd, buffer, sizeof buffer, at);
			if (got <= 0)
				die("cannot read %s: %s", path, got == 0 ? "it ends early" : strerror(errno));
			at += got;
		}
	}
}

int resident_files(int count, char **paths, enum cache_change change)
{
	uint64_t *pages = calloc((size_t)count, sizeof *pages), lacked = 0;
	if (!pages)
		die("no memory for %d files", count);
	for (int i = 0; i < count; i++) {
		int fd = open_file(paths[i], 0);
		uint64_t before = change == CACHE_FETCH ? resident_pages(fd, paths[i]) : 0;
		if (change == CACHE_EVICT)
			drop(fd, paths[i]);
		else if (change == CACHE_FETCH)
			fetch(fd, paths[i]);
		pages[i] = resident_pages(fd, paths[i]);
		if (pages[i] > before)
			lacked += pages[i] - before;
		close(fd);
	}
	for (int i = 0; i < count; i++)
		printf("%s%" PRIu64, i ? "," : "{\"ok\":true,\"pages\":[", pages[i]);
	printf("]");
	if (change == CACHE_FETCH)
		printf(",\"lacked\":%" PRIu64, lacked);
	printf("}\n");
	free(pages);
	return 0;
}

static uint64_t timed_read(const char *path, int flags, void *buffer, uint64_t *bytes)
{
	int fd = open_file(path, flags);
	uint64_t began = clock_ns(CLOCK_MONOTONIC);
	ssize_t got;
	*bytes = 0;
	while ((got = read(fd, buffer, READ_BYTES)) > 0)
		*bytes += (uint64_t)got;
	if (got < 0)
		die("cannot read %s: %s", path, strerror(errno));
	uint64_t took = clock_ns(CLOCK_MONOTONIC) - began;
	close(fd);
	return took;
}

int read_bandwidth(const char *path)
{
	uint64_t ns[2], bytes = 0;
	void *buffer = aligned_alloc(PAGE, READ_BYTES);
	if (!buffer)
		die("no memory for a buffer of %zu bytes", READ_BYTES);
	for (int way = 0; way < 2; way++) {
		int fd = open_file(path, 0);
		drop(fd, path);
		uint64_t left = resident_pages(fd, path);
		close(fd);
		if (left != 0)
			die("%" PRIu64 " pages of %s stay in the page cache", left, path);
		ns[way] = timed_read(path, way == 0 ? O_DIRECT : 0, buffer, &bytes);
	}
	printf("{\"ok\":true,\"bytes\":%" PRIu64 ",\"directNs\":%" PRIu64 ",\"bufferedNs\":%" PRIu64 "}\n", bytes, ns[0], ns[1]);
	free(buffer);
	return 0;
}
