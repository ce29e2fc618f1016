/*
 * Hibernation: the memory of a process goes to a file, the process stays (part of the extractor).
 *
 *   extractor deflate PID CONTROL_FD [limit=BYTES] [kept=OFFSET,BYTES,…] [unused=NAME]… 3<>SWAP    SWAP: an unlinked file that belongs to this process alone
 *
 * Theory of operation. Private pages are written to the file, then private mappings of the file take the place of the memory, and
 * clean pages of other files are dropped (Hibernate Container, 2023, §3.2). Page tables go with the pages; kernel objects stay.
 * Waking needs nothing of us: pages come back by faults, or by reading ahead.
 *
 *   stage     the process     what it does
 *   arm       main thread     a userfaultfd with WP_ASYNC is made by injection, taken over, and registered: the kernel then notes
 *             held shortly    which pages are written, and nobody ever waits for it (before Linux 6.7: soft-dirty bits; without
 *                             those there is no copy while it runs)
 *   copy      runs            private pages → file, fdatasync, and again what was written meanwhile, until that is little. Almost all
 *                             of the bytes; a full disk is found here
 *   stop      all stopped     what was written since is copied; what is gone is cleared
 *   remap     all stopped     mappings of the file over the memory, MADV_DONTNEED over all. No way back: a failure here ends the
 *                             process, because half of it would be gone
 *   settle    runs            file flushed and dropped from the page cache
 *
 * SIGTERM (a request came) ends it before remap with nothing changed, and so do bytes that lie unread in its control socket; after
 * that it is done within milliseconds.
 *
 * The second time, mappings of the file are already there: their private pages are written to their own places, and only
 * dropped. Where the file holds what is known from the mappings themselves; nothing else is kept between two runs.
 *
 * `kept`: parts of the file, in order, whose private pages are written like all others, and stay where they are. Every request writes
 * them again, and a page that is there spares it a fault, a copy, and on a cold disk a read.
 *
 * `limit`: bytes of memory that the function may have. What it holds in the file is not counted by its control group.
 *
 * `unused`: the name of a library that has jemalloc in it and, as the runtime says, has never allocated by it: no reason to refuse.
 */
#include "deflate.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define CHUNK_PAGES 256
#define ROUNDS_MAX 8
#define FEW_PAGES 16

static volatile sig_atomic_t cancelled;
static char buffer[CHUNK_PAGES * 4096] __attribute__((aligned(4096)));

static void on_term(int signal)
{
	(void)signal;
	cancelled = 1;
}

/* ---- copying ---- */

static void read_memory(struct deflation *d, uint64_t address, size_t bytes)
{
	struct iovec local = { buffer, bytes }, remote = { (void *)address, bytes };
	if (process_vm_readv(d->target->pid, &local, 1, &remote, 1, 0) == (ssize_t)bytes)
		return;
	/* it respects protections; this does not, and is slower. Memory that went away meanwhile is looked at again when all is stopped. */
	for (size_t done = 0; done < bytes;) {
		ssize_t got = pread(d->mem, buffer + done, bytes - done, (off_t)(address + done));
		if (got <= 0 && d->target->thread_count > 0)
			unreadable(address + done);
		if (got <= 0)
			memset(buffer + done, 0, (size_t)(got = PAGE));
		done += (size_t)got;
	}
}

static void write_file(uint64_t offset, const char *bytes, size_t count)
{
	while (count > 0) {
		ssize_t put = pwrite(SWAP_FD, bytes, count, (off_t)offset);
		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			die("cannot write the memory to disk: %s", strerror(put < 0 ? errno : (errno = ENOSPC)));
		bytes += put;
		count -= (size_t)put;
		offset += (uint64_t)put;
	}
}

/* `fresh`: the place is a hole, so that zero pages need not be written. */
static void copy_range(struct deflation *d, const struct piece *piece, uint64_t start, uint64_t end, bool fresh)
{
	for (uint64_t at = start; at < end && !cancelled;) {
		size_t pages = (end - at) / PAGE < CHUNK_PAGES ? (end - at) / PAGE : CHUNK_PAGES;
		read_memory(d, at, pages * PAGE);
		size_t from = 0;
		for (size_t i = 0; i <= pages; i++) {
			if (i < pages && !(fresh && is_zero((const uint8_t *)buffer + i * PAGE)))
				continue;
			if (i > from)
				write_file(piece->offset + (at - piece->start) + from * PAGE, buffer + from * PAGE, (i - from) * PAGE);
			d->written_pages += i - from;
			from = i + 1;
		}
		at += pages * PAGE;
	}
}

static void copy_piece(struct deflation *d, const struct piece *piece, bool fresh)
{
	if (piece->over_file) /* clean pages between changed ones, too */
		copy_range(d, piece, piece->start, piece->end, false);
	for (size_t i = 0; i < piece->range_count && !piece->over_file; i++)
		copy_range(d, piece, piece->ranges[i].start, piece->ranges[i].end, fresh);
}

/* Was written since it was copied, and is protected again: to its place once more. What has no place yet is found at the stop. */
static void copy_again(void *context, const struct scan_region *range)
{
	struct deflation *d = context;
	for (size_t i = 0; i < d->view->piece_count; i++) {
		const struct piece *piece = &d->view->pieces[i];
		uint64_t start = range->start > piece->start ? range->start : piece->start;
		uint64_t end = range->end < piece->end ? range->end : piece->end;
		if (start < end)
			copy_range(d, piece, start, end, false);
	}
}

/* So that little is left for the stop, whatever the process did while its memory was written to disk. */
static void copy_rounds(struct deflation *d, struct view *view)
{
	d->view = view;
	for (int round = 0; round < ROUNDS_MAX && !cancelled; round++) {
		uint64_t before = d->written_pages;
		for (size_t i = 0; i < view->vma_count && !cancelled; i++)
			if (!left_alone(&view->vmas[i]))
				track_written(d->pagemap, &view->vmas[i], false, copy_again, d);
		if (d->written_pages - before <= FEW_PAGES)
			break;
	}
}

/* All that is private, while it runs. */
static void copy_running(struct deflation *d, struct view *view, const struct view *earlier)
{
	look(d, view, earlier);
	refuse_mappings(view);
	settle_places(d, view, NULL);
	for (size_t i = 0; i < view->piece_count && !cancelled; i++)
		copy_piece(d, &view->pieces[i], !view->pieces[i].mapped);
	if (!cancelled && fdatasync(SWAP_FD) != 0)
		die("cannot write the memory to disk: %s", strerror(errno));
	if (d->tracking == TRACKED_AGAIN)
		copy_rounds(d, view);
}

/* Calls `each` for every part of `a` that `b` does not cover. Both are sorted. */
static void subtract(struct deflation *d, const struct piece *a, const struct piece *b, bool unwritten_only,
		     void (*each)(struct deflation *d, const struct piece *of, uint64_t start, uint64_t end))
{
	size_t j = 0;
	for (size_t i = 0; i < a->range_count; i++) {
		uint64_t at = a->ranges[i].start, end = a->ranges[i].end;
		if (unwritten_only && a->ranges[i].written)
			continue;
		while (j > 0 && b->ranges[j - 1].end > at)
			j--;
		while (at < end) {
			while (j < b->range_count && b->ranges[j].end <= at)
				j++;
			uint64_t until = j < b->range_count && b->ranges[j].start < end ? b->ranges[j].start : end;
			if (until > at)
				each(d, a, at, until);
			at = j < b->range_count && b->ranges[j].end > until ? b->ranges[j].end : end;
		}
	}
}

static void copy_missed(struct deflation *d, const struct piece *piece, uint64_t start, uint64_t end)
{
	copy_range(d, piece, start, end, false);
}

/* Was copied, and the process has it no more: anonymous memory is zeros then, and a page of a file is the file's again. */
static void forget(struct deflation *d, const struct piece *piece, uint64_t start, uint64_t end)
{
	if (piece->over_file)
		copy_range(d, piece, start, end, false);
	else if (!piece->mapped)
		punch(piece->offset + (start - piece->start), end - start);
}

/* What has changed since copy_all; all threads are stopped. */
static void copy_rest(struct deflation *d, const struct view *view)
{
	for (size_t i = 0; i < view->piece_count && !cancelled; i++) {
		const struct piece *piece = &view->pieces[i], *before = piece->before;
		if (!before || (piece->over_file && piece->end != before->end)) {
			copy_piece(d, piece, !before && !piece->mapped);
			continue;
		}
		for (size_t j = 0; j < piece->range_count; j++)
			if (piece->ranges[j].written)
				copy_range(d, piece, piece->ranges[j].start, piece->ranges[j].end, false);
		subtract(d, piece, before, true, copy_missed);
		struct piece gone = *before;
		while (gone.range_count && gone.ranges[gone.range_count - 1].start >= piece->end)
			gone.range_count--;
		subtract(d, &gone, piece, false, forget);
	}
}

/* ---- the process itself ---- */

static void nothing(void *context, const struct scan_region *range)
{
	(void)context;
	(void)range;
}

/* False when a request came. Its main thread may need a moment to come back to its read: on a busy machine it waits for a processor. */
static bool stop(struct deflation *d, bool all)
{
	/* A function stands still while this works: nothing else on the machine is more urgent. Without the right, it is slower. */
	setpriority(PRIO_PROCESS, 0, -20);
	uint64_t since = 0;
	do {
		uint64_t began;
		if (stop_in_place(d->target, all, &began)) {
			d->stopped_ns -= began;
			return true;
		}
	} while (!cancelled && may_park(&since));
	if (!cancelled)
		refuse("its main thread does not wait for a request");
	return false;
}

static void go_on(struct deflation *d)
{
	release_all(d->target);
	d->stopped_ns += clock_ns(CLOCK_MONOTONIC);
	setpriority(PRIO_PROCESS, 0, 0);
}

/* From here on the kernel notes which pages are written, if it can. False when a request came first. */
static bool arm(struct deflation *d, const struct view *view)
{
	if (!stop(d, false))
		return false;
	refuse_forbidden(d);
	d->tracking = track_begin(d->target, &d->uffd);
	go_on(d);
	for (size_t i = 0; i < view->vma_count && d->tracking == TRACKED_AGAIN; i++) {
		const struct vma *vma = &view->vmas[i];
		if (left_alone(vma) || vma->shared || vma->kind == FILE_SHARED)
			continue;
		/* A mapping that is gone by now, or another: what is not registered counts as written. */
		if (track_mapping(d->uffd, vma))
			track_written(d->pagemap, vma, true, nothing, NULL);
	}
	return true;
}

/* Unread bytes in its control socket: a request that it could not take because it is stopped. */
static bool request_waits(struct deflation *d)
{
	int bytes = 0, control = take_descriptor(d->target->pid, d->target->control_fd);
	bool waits = control >= 0 && ioctl(control, FIONREAD, &bytes) == 0 && bytes > 0;
	if (control >= 0)
		close(control);
	return cancelled || waits;
}

/* ---- the whole ---- */

static int by_start(const void *left, const void *right)
{
	const struct range *a = left, *b = right;
	return a->start < b->start ? -1 : a->start > b->start;
}

static void clear(uint64_t start, uint64_t end)
{
	for (off_t at; start < end && (at = lseek(SWAP_FD, (off_t)start, SEEK_DATA)) >= 0 && (uint64_t)at < end;) {
		off_t hole = lseek(SWAP_FD, at, SEEK_HOLE);
		start = hole < 0 || (uint64_t)hole > end ? end : (uint64_t)hole;
		punch((uint64_t)at, start - (uint64_t)at);
	}
}

/*
 * Data where no mapping is any more, down to the page: a function that keeps one page of each mapping shall not fill the disk. By what was mapped when all was
 * stopped, as what is read of a process that runs may lack a mapping that moved meanwhile. It runs by now, but maps nothing of the file that it had not then.
 */
static void clear_unused(const struct deflation *d, const struct view *stopped, bool done)
{
	size_t count = 0;
	uint64_t at = 0;
	struct range *used = malloc((stopped->vma_count + stopped->piece_count + 1) * sizeof *used);
	if (!used)
		die("out of memory");
	for (size_t i = 0; i < stopped->vma_count; i++) {
		const struct vma *vma = &stopped->vmas[i];
		if (in_swap(d, vma))
			used[count++] = (struct range){ vma->offset, vma->offset + (vma->end - vma->start), false };
	}
	for (size_t i = 0; i < stopped->piece_count && done; i++) {
		const struct piece *piece = &stopped->pieces[i];
		if (!piece->mapped)
			used[count++] = (struct range){ piece->offset, piece->offset + (piece->end - piece->start), false };
	}
	qsort(used, count, sizeof *used, by_start);
	for (size_t i = 0; i < count; i++) {
		clear(at, used[i].start);
		at = used[i].end > at ? used[i].end : at;
	}
	clear(at, d->file_bytes);
	free(used);
}

/* A request came before all was stopped: only what was written to new places is known to be nobody's. */
static void clear_new(const struct view *running)
{
	for (size_t i = 0; i < running->piece_count; i++) {
		const struct piece *piece = &running->pieces[i];
		if (!piece->mapped)
			clear(piece->offset, piece->offset + (piece->end - piece->start));
	}
}

static uint64_t resident_bytes(pid_t pid)
{
	char path[64], line[256];
	uint64_t total = 0;
	unsigned long kib;
	snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
	FILE *file = fopen(path, "re");
	while (file && fgets(line, sizeof line, file))
		if (sscanf(line, "Private_Clean: %lu", &kib) == 1 || sscanf(line, "Private_Dirty: %lu", &kib) == 1)
			total += kib * 1024ULL;
	if (file)
		fclose(file);
	return total;
}

static void page_out(int pidfd, const struct iovec *parts, size_t *count)
{
	if (*count)
		(void)!syscall(SYS_process_madvise, pidfd, parts, *count, MADV_PAGEOUT, 0);
	*count = 0;
}

/*
 * Threads that were interrupted in epoll_wait or the like touched a few pages when they went back to sleep, and the kernel mapped
 * their neighbours. Those are clean: they go again, without another stop. A kernel that cannot do it leaves them.
 */
static void drop_neighbours(struct deflation *d, const struct view *now)
{
	struct iovec parts[256];
	size_t count = 0;
	int pidfd = (int)syscall(SYS_pidfd_open, d->target->pid, 0);
	for (size_t i = 0; i < now->vma_count && pidfd >= 0 && !cancelled; i++) {
		uint64_t at = now->vmas[i].start, end = in_swap(d, &now->vmas[i]) ? now->vmas[i].end : at;
		for (struct range free = next_free(d, &at, end); free.start < free.end && !cancelled; free = next_free(d, &at, end)) {
			parts[count++] = (struct iovec){ (void *)free.start, free.end - free.start };
			if (count == sizeof parts / sizeof parts[0])
				page_out(pidfd, parts, &count);
		}
	}
	page_out(pidfd, parts, &count);
	if (pidfd >= 0)
		close(pidfd);
}

static int report(struct deflation *d, const struct view *view, bool done)
{
	struct view now = { 0 };
	now.vma_count = read_vmas(d->target->pid, &now.vmas, VMAS_FLAGS);
	/* After the process goes on: a request that comes now does not wait for the disk. */
	if (fdatasync(SWAP_FD) != 0)
		die("cannot write the memory to disk: %s", strerror(errno));
	if (done)
		drop_neighbours(d, &now);
	posix_fadvise(SWAP_FD, 0, 0, POSIX_FADV_DONTNEED);
	struct stat is;
	if (fstat(SWAP_FD, &is) != 0)
		die("cannot look at the file: %s", strerror(errno));
	printf("{\"ok\":true,\"cancelled\":%s,\"stoppedUs\":%" PRIu64 ",\"writtenPages\":%" PRIu64 ",\"hibernatedBytes\":%" PRIu64
	       ",\"residentBytes\":%" PRIu64 ",\"mappings\":%zu",
	       done ? "false" : "true", d->stopped_ns / 1000, done ? d->written_pages : 0, (uint64_t)is.st_blocks * 512,
	       resident_bytes(d->target->pid), now.vma_count);
	if (done && fclose(view->swap_present) == 0 && fclose(view->swap_written) == 0 && fclose(view->file_present) == 0)
		printf(",\"touched\":[%s],\"written\":[%s],\"files\":[%s]", view->swap_text, view->written_text, view->file_text);
	printf("}\n");
	return 0;
}

static void read_kept(struct deflation *d, const char *text)
{
	for (char *next = NULL; *text && d->kept_count < KEPT_MAX; text = *next ? next + 1 : next) {
		uint64_t start = strtoull(text, &next, 10);
		uint64_t bytes = *next == ',' ? strtoull(next + 1, &next, 10) : 0;
		uint64_t last = d->kept_count ? d->kept[d->kept_count - 1].end : 0;
		if (!bytes || start < last || (start | bytes) % PAGE || (*next && *next != ','))
			die("kept= wants offsets and lengths of whole pages, in order");
		d->kept[d->kept_count++] = (struct range){ start, start + bytes, false };
	}
}

int deflate(struct target *target, int argc, char **argv)
{
	struct deflation d = { .target = target, .mem = -1, .pagemap = -1, .uffd = -1 };
	struct view first = { 0 }, running = { 0 }, stopped = { 0 };
	char path[64];
	sigaction(SIGTERM, &(struct sigaction){ .sa_handler = on_term }, NULL);
	target->pid = atoi(argv[2]);
	target->control_fd = atoi(argv[3]);
	for (int i = 4; i < argc; i++)
		if (strncmp(argv[i], "kept=", 5) == 0)
			read_kept(&d, argv[i] + 5);
		else if (strncmp(argv[i], "unused=", 7) == 0 && d.unused_count < UNUSED_MAX)
			d.unused[d.unused_count++] = argv[i] + 7;
		else if (strncmp(argv[i], "limit=", 6) == 0)
			d.limit_bytes = strtoull(argv[i] + 6, NULL, 10);
	if (fstat(SWAP_FD, &d.swap) != 0)
		die("descriptor %d is no file: %s", SWAP_FD, strerror(errno));
	d.file_bytes = (uint64_t)d.swap.st_size;
	snprintf(path, sizeof path, "/proc/%d/pagemap", target->pid);
	d.pagemap = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof path, "/proc/%d/mem", target->pid);
	d.mem = open(path, O_RDWR | O_CLOEXEC);
	if (d.pagemap < 0 || d.mem < 0)
		die("cannot open the memory of the process: %s", strerror(errno));

	first.text = read_maps(target->pid);
	first.vma_count = read_vmas(target->pid, &first.vmas, VMAS_FLAGS);
	refuse_unfit(&d, &first);
	refuse_beyond_limit(&d);
	if (!arm(&d, &first))
		return report(&d, NULL, false);
	refuse_sharers(&d, &first);
	refuse_overlaps(&d, &first);
	if (d.tracking != TRACKED_NOT)
		copy_running(&d, &running, &first);

	if (!stop(&d, true)) {
		clear_new(&running);
		return report(&d, NULL, false);
	}
	look(&d, &stopped, d.tracking == TRACKED_NOT ? &first : &running);
	refuse_mappings(&stopped);
	refuse_overlaps(&d, &stopped);
	refuse_sharers(&d, &stopped);
	settle_places(&d, &stopped, d.tracking == TRACKED_NOT ? NULL : &running);
	copy_rest(&d, &stopped);
	bool done = !request_waits(&d);
	if (done)
		remap(&d, &stopped);
	go_on(&d);
	if (d.uffd >= 0)
		close(d.uffd);
	clear_unused(&d, &stopped, done);
	return report(&d, &stopped, done);
}
