/*
 * Packing: the parts of a page space that starts read from disk are moved together on the disk. The file stays what it was, byte by byte and
 * offset by offset; only the file system's map of it changes. Reads of thousands of scattered parts then are neighbours for the disk, and
 * the block layer joins them as they are submitted.
 *
 *   extractor pack FILE    descriptor 3: 64-bit pairs of offset and length, in the order in which they will be read
 *
 * Theory of operation. A file without a name gets as many bytes in a row as the parts have together; each part then changes places with
 * its share of them (EXT4_IOC_MOVE_EXT, made for online defragmentation). The kernel copies under the pages' locks and in a transaction of the journal,
 * whoever maps or reads the file meanwhile sees no change, and no time of the file changes. Pages that the page cache has in pieces of
 * several it calls busy (EBUSY). So the file is dropped from the page cache, and its parts are read again, one page a piece; what somebody maps is
 * not dropped. A part that is busy stays where it was, and costs a start what it cost before.
 */
#include "extractor.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* The kernel itself tries busy parts again, with a commit of the journal for each try: too many of them, and all of it is left. */
#define BUSY_MAX 32

/* Not among the headers for programs (fs/ext4/ext4.h). In blocks of the file system. */
struct move_extent {
	uint32_t reserved, donor_fd;
	uint64_t orig_start, donor_start, len, moved_len;
};
#define EXT4_IOC_MOVE_EXT _IOWR('f', 15, struct move_extent)

/* An answer, not a failure. */
static int cannot_pack(const char *code, const char *what)
{
	printf("{\"ok\":false,\"code\":\"%s\",\"why\":\"%s: %s\"}\n", code, what, strerror(errno));
	return 0;
}

/* 0, or errno. `moved` bytes are in their new place in any case. */
static int move(int fd, int donor, const struct part *part, uint64_t to, uint64_t block, uint64_t *moved)
{
	struct move_extent ask = {
		.donor_fd = (uint32_t)donor,
		.orig_start = part->offset / block,
		.donor_start = to / block,
		.len = part->bytes / block,
	};
	int error = ioctl(fd, EXT4_IOC_MOVE_EXT, &ask) == 0 ? 0 : errno;
	*moved = ask.moved_len * block;
	return error;
}

int pack_file(const char *path)
{
	int block, fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, FIGETBSZ, &block) != 0)
		die("cannot open %s: %s", path, strerror(errno));
	size_t count;
	const struct part *parts = map_parts(&count);
	uint64_t bytes = 0, moved_bytes = 0, at = 0;
	for (size_t i = 0; i < count; i++)
		bytes += parts[i].bytes;

	char directory[4096];
	snprintf(directory, sizeof directory, "%s", path);
	int donor = open(dirname(directory), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (donor < 0)
		return cannot_pack("unsupported", "the file system has no files without a name");
	if (fallocate(donor, 0, 0, (off_t)bytes) != 0)
		return cannot_pack(errno == ENOSPC || errno == EDQUOT ? "exhausted" : "unsupported", "no room in a row on the disk");
	/* Pages that wait to be written are busy, and cannot be dropped. */
	if (fdatasync(fd) != 0 || fdatasync(donor) != 0)
		die("cannot flush %s: %s", path, strerror(errno));
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	for (size_t i = 0; i < count; i++)
		posix_fadvise(fd, (off_t)parts[i].offset, (off_t)parts[i].bytes, POSIX_FADV_WILLNEED);
	unsigned busy = 0;
	for (size_t i = 0; i < count && busy < BUSY_MAX; i++) {
		uint64_t moved;
		int error = move(fd, donor, &parts[i], at, (uint64_t)block, &moved);
		errno = error;
		if (error == ENOTTY || error == EOPNOTSUPP)
			return cannot_pack("unsupported", "the file system cannot move parts of a file (ext4 can)");
		busy += moved < parts[i].bytes;
		moved_bytes += moved;
		at += parts[i].bytes;
	}
	if (fdatasync(fd) != 0)
		die("cannot flush %s: %s", path, strerror(errno));
	printf("{\"ok\":true,\"parts\":%zu,\"bytes\":%" PRIu64 ",\"movedBytes\":%" PRIu64 "}\n", count, bytes, moved_bytes);
	return 0;
}
