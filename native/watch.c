/*
 * What a wake touches (part of the extractor).
 *
 *   extractor watch PID CONTROL_FD 3<SWAP    PID: hibernated. SWAP: the file of its memory. SIGTERM: tell what is present now
 *
 * Theory of operation. A read fault maps up to 16 cached pages around the one that it needs, so what is present says little about
 * what was touched. The kernel does not do that in mappings that are registered with a userfaultfd for write protection. Nothing is
 * protected and nobody ever waits (src/image/compile-recording.ts tells more): the process makes one, by injection while it waits for a request, it
 * is taken over, and closed with us. The process itself keeps nothing.
 *
 * Answer: when it was armed, CLOCK_MONOTONIC nanoseconds; then as a hibernation tells it, offsets and lengths of what is present
 * in the file of its memory, what of that was written, and what is present in others.
 */
#include "track.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define MEMORY_FD 3

/* One mapping of a file. */
struct mapped {
	uint64_t start, end, offset, inode;
	unsigned major, minor;
};

/* What of it is present, as it is told. */
struct telling {
	FILE *out;
	const struct mapped *mapped;
	uint64_t start, end;
	bool any;
};

static size_t read_mapped(pid_t pid, struct mapped **list)
{
	char path[64], line[8192], flags[5];
	size_t count = 0, room = 0;
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	FILE *maps = fopen(path, "re");
	if (!maps)
		die("cannot read %s: %s", path, strerror(errno));
	*list = NULL;
	while (fgets(line, sizeof line, maps)) {
		struct mapped one;
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &one.start, &one.end, flags, &one.offset, &one.major,
			   &one.minor, &one.inode) != 7 ||
		    one.inode == 0)
			continue;
		*list = grow(*list, count, &room, sizeof one);
		(*list)[count++] = one;
	}
	fclose(maps);
	return count;
}

/* Made by the process, held by us. */
static int make_userfaultfd(struct target *target, struct pollfd *told)
{
	uint64_t began, since = 0;
	while (!stop_in_place(target, false, &began)) {
		if (poll(told, 1, 0) > 0)
			refuse("it was woken first");
		if (!may_park(&since))
			refuse("it does not wait for a request");
	}
	int uffd = track_make(target, WP_UNPOPULATED);
	release_all(target);
	return uffd;
}

static void flush(struct telling *it)
{
	if (it->end > it->start)
		fprintf(it->out, "%s%" PRIu64 ",%" PRIu64, it->any ? "," : "", it->start - it->mapped->start + it->mapped->offset, it->end - it->start);
	it->any |= it->end > it->start;
	it->start = it->end = 0;
}

static void tell_range(void *context, const struct scan_region *range)
{
	struct telling *it = context;
	if (range->start != it->end) {
		flush(it);
		it->start = range->start;
	}
	it->end = range->end;
}

static void tell_present(pid_t pid, uint64_t armed_ns)
{
	char path[64], *own_text, *written_text, *text;
	size_t own_bytes, written_bytes, bytes;
	struct stat memory;
	struct mapped *list;
	size_t count = read_mapped(pid, &list);
	snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
	int pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (pagemap < 0 || fstat(MEMORY_FD, &memory) != 0)
		die("cannot look at its pages: %s", strerror(errno));
	struct telling own = { .out = open_memstream(&own_text, &own_bytes) }, other = { .out = open_memstream(&text, &bytes) };
	struct telling written = { .out = open_memstream(&written_text, &written_bytes) };
	if (!own.out || !other.out || !written.out)
		die("out of memory");
	/* Guard regions count as swapped out, and nobody touches them. */
	uint64_t guard = guard_category(pagemap);
	const struct scan_arg present = { .category_inverted = guard, .category_mask = guard, .category_anyof_mask = IS_PRESENT | IS_SWAPPED,
					  .return_mask = IS_PRESENT | IS_SWAPPED };
	const struct scan_arg private = { .category_inverted = IS_FILE | IS_ZERO | guard, .category_mask = IS_FILE | IS_ZERO | guard,
					  .category_anyof_mask = IS_PRESENT | IS_SWAPPED, .return_mask = IS_PRESENT | IS_SWAPPED };
	bool any = false;
	for (size_t i = 0; i < count; i++) {
		const struct mapped *one = &list[i];
		bool its = one->inode == memory.st_ino && makedev(one->major, one->minor) == memory.st_dev;
		struct telling *it = its ? &own : &other;
		it->mapped = one;
		if (!its) {
			it->any = false;
			fprintf(it->out, "%s{\"file\":\"%x:%x:%" PRIu64 "\",\"mapping\":\"%" PRIx64 "-%" PRIx64 "\",\"ranges\":[", any ? "," : "",
				one->major, one->minor, one->inode, one->start, one->end);
			any = true;
		}
		scan(pagemap, one->start, one->end, present, tell_range, it);
		flush(it);
		if (!its) {
			fprintf(it->out, "]}");
			continue;
		}
		written.mapped = one;
		scan(pagemap, one->start, one->end, private, tell_range, &written);
		flush(&written);
	}
	if (fclose(own.out) != 0 || fclose(written.out) != 0 || fclose(other.out) != 0)
		die("out of memory");
	printf("{\"ok\":true,\"armedNs\":%" PRIu64 ",\"touched\":[%s],\"written\":[%s],\"files\":[%s]}\n", armed_ns, own_text,
	       written_text, text);
}

int watch_wake(struct target *target, pid_t pid, int control_fd)
{
	sigset_t term;
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigprocmask(SIG_BLOCK, &term, NULL);
	struct pollfd wait[2] = { { .fd = signalfd(-1, &term, SFD_CLOEXEC), .events = POLLIN },
				  { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN } };
	if (wait[0].fd < 0 || wait[1].fd < 0)
		die("cannot wait for its wake: %s", strerror(errno));
	target->pid = pid;
	target->control_fd = control_fd;
	int uffd = make_userfaultfd(target, &wait[0]);
	struct mapped *list;
	size_t count = read_mapped(pid, &list);
	for (size_t i = 0; i < count; i++) {
		struct uffdio_register all = { .range = { list[i].start, list[i].end - list[i].start }, .mode = UFFDIO_REGISTER_MODE_WP };
		/* The kernel refuses what is mapped shared and could not be written: those few pages stay inexact. */
		(void)!ioctl(uffd, UFFDIO_REGISTER, &all);
	}
	uint64_t armed_ns = clock_ns(CLOCK_MONOTONIC);
	while (poll(wait, 2, -1) < 0 && errno == EINTR) {}
	if (wait[1].revents)
		refuse("it ended");
	tell_present(pid, armed_ns);
	return 0;
}
