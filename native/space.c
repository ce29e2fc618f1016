/*
 * Memory that the pager fills: the userfaultfd of each function whose loader wants that, served from the image's page space
 * (REAP, ASPLOS'21), and its base's.
 *
 *   adopt     the function's husk waits at its gate: register its regions, install the recorded set in bulk, open the gate
 *   fault     one page at a time, from the page space; noted in order of first access
 *   events    mremap(2), munmap(2) and madvise(2) change what an address means, and fork(2) makes another memory that lacks the same pages
 *   drop      the instance is over
 *
 * Which page of the page space belongs where is a list of ranges for each memory, and a bitmap of those that were handed out: a page
 * that is missing again was given back by the function, and is zeros, as anonymous memory is. Pages of an overlay stand for a file,
 * and come back.
 *
 * All of it runs on the pager's one thread: a fault waits while another function's set is installed. What cannot be served ends the
 * function (the keeper is told); it never gets a page that is not its own.
 */
#include "pager.h"

#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* LISTS_BYTES_MAX: of what the pager knows of one function's memory, and of its children's. Nobody counts that to the function. */
enum { PAGE = 4096, MESSAGES_A_READ = 32, READERS = 8, LISTS_BYTES_MAX = 64 << 20 };
#define FEATURES (UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP)

struct range {
	uint64_t start, end, offset;	/* offset: in the page space, as page_range.from */
	uint64_t index;			/* of its first page in the bitmap */
	bool file;
};

/* One memory: the function's, or that of a process which it forked. */
struct space {
	int uffd;
	struct range *ranges;
	size_t count, cap;
	uint8_t *served;
	struct paged *owner;
	struct space *next;
};

struct paged {
	uint32_t id;
	int pages, base;		/* page spaces */
	uint64_t bitmap_bytes;
	struct space *spaces;		/* the function's own is the last */
	uint64_t *trace;
	size_t traced, trace_cap;
};

static int epoll_fd = -1;
static struct table paged;
static uint8_t page_buffer[PAGE] __attribute__((aligned(PAGE)));
static const uint8_t zeros[PAGE] __attribute__((aligned(PAGE)));

static void *must(void *memory) {
	if (memory == NULL) die("out of memory in the pager; lower the number of instances");
	return memory;
}

static void failed(const struct paged *it, int error, const char *what) {
	struct pager_answer told = {.kind = PAGER_FAILED, .id = it->id, .error = error};
	snprintf(told.text, sizeof told.text, "%s: %s", what, strerror(error));
	pager_answer(&told);
}

/* ---- which page belongs where ---- */

/* The first range that ends behind the address. */
static size_t range_from(const struct space *space, uint64_t address) {
	size_t low = 0, high = space->count;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (space->ranges[middle].end <= address) low = middle + 1;
		else high = middle;
	}
	return low;
}

static struct range *range_at(const struct space *space, uint64_t address) {
	size_t at = range_from(space, address);
	return at < space->count && space->ranges[at].start <= address ? &space->ranges[at] : NULL;
}

static void range_add(struct space *space, struct range range) {
	if (range.start >= range.end) return;
	if (space->count == space->cap) {
		space->cap = space->cap * 2 + 16;
		space->ranges = must(realloc(space->ranges, space->cap * sizeof range));
	}
	size_t at = space->count;
	while (at > 0 && space->ranges[at - 1].start > range.start) at--;
	memmove(space->ranges + at + 1, space->ranges + at, (space->count - at) * sizeof range);
	space->ranges[at] = range;
	space->count++;
}

static struct range range_part(struct range range, uint64_t start, uint64_t end) {
	uint64_t from = start > range.start ? start : range.start;
	range.offset += from - range.start;
	range.index += (from - range.start) / PAGE;
	range.start = from;
	if (end < range.end) range.end = end;
	return range;
}

/* Takes [start, end) out of the list. `to`: where it went (mremap). */
static void ranges_cut(struct space *space, uint64_t start, uint64_t end, const uint64_t *to) {
	size_t count = space->count;
	struct range *old = space->ranges;
	space->ranges = NULL;
	space->count = space->cap = 0;
	for (size_t at = 0; at < count; at++) {
		if (old[at].end <= start || old[at].start >= end) {
			range_add(space, old[at]);
			continue;
		}
		range_add(space, range_part(old[at], old[at].start, start));
		range_add(space, range_part(old[at], end, old[at].end));
		if (to == NULL) continue;
		struct range moved = range_part(old[at], start, end);
		moved.end = *to + (moved.end - start);
		moved.start = *to + (moved.start - start);
		range_add(space, moved);
	}
	free(old);
}

static bool served(const struct space *space, uint64_t index) { return space->served[index / 8] & (1 << (index % 8)); }

static void bits_set(uint8_t *bits, uint64_t at, uint64_t end) {
	while (at < end && (at % 8 != 0 || end - at < 8)) bits[at / 8] |= (uint8_t)(1 << (at % 8)), at++;
	memset(bits + at / 8, 0xff, (end - at) / 8);
	for (at += (end - at) / 8 * 8; at < end; at++) bits[at / 8] |= (uint8_t)(1 << (at % 8));
}

/*
 * What the function gave back (MADV_DONTNEED) is marked, too: to cut it out would leave it a range for each hole, as many as it likes, copied for each of
 * its children.
 */
static void mark_served(struct space *space, uint64_t start, uint64_t end) {
	for (size_t at = range_from(space, start); at < space->count && space->ranges[at].start < end; at++) {
		struct range part = range_part(space->ranges[at], start, end);
		bits_set(space->served, part.index, part.index + (part.end - part.start) / PAGE);
	}
}

/* ---- filling ---- */

static void wake(const struct space *space, uint64_t address) {
	struct uffdio_range range = {address, PAGE};
	ioctl(space->uffd, UFFDIO_WAKE, &range);
}

/* 0, or -errno. -EAGAIN: an event waits that changes this memory. A page that is there already is left alone. */
static int fill(const struct space *space, uint64_t address, const void *from, uint64_t bytes, uint64_t mode) {
	for (uint64_t done = 0; done < bytes;) {
		struct uffdio_copy copy = {.dst = address + done, .src = (uint64_t)(uintptr_t)from + done, .len = bytes - done, .mode = mode};
		int error = ioctl(space->uffd, UFFDIO_COPY, &copy) == 0 ? 0 : errno;
		if (copy.copy > 0) done += (uint64_t)copy.copy;
		else if (error == EEXIST) done += PAGE;
		else if (error != 0) return -error;
	}
	return 0;
}

static int fill_zeros(const struct space *space, uint64_t address, uint64_t bytes, uint64_t mode) {
	for (uint64_t done = 0; done < bytes;) {
		struct uffdio_zeropage zero = {.range = {address + done, bytes - done}, .mode = mode};
		int error = ioctl(space->uffd, UFFDIO_ZEROPAGE, &zero) == 0 ? 0 : errno;
		if (zero.zeropage > 0) done += (uint64_t)zero.zeropage;
		else if (error == EEXIST) done += PAGE;
		else if (error != 0) return -error;
	}
	return 0;
}

/* All of [offset, offset + bytes), or -errno. */
static int read_whole(int fd, void *to, uint64_t bytes, uint64_t offset) {
	for (uint64_t done = 0; done < bytes;) {
		ssize_t count = pread(fd, (char *)to + done, bytes - done, (off_t)(offset + done));
		if (count < 0 && errno == EINTR) continue;
		if (count <= 0) return count == 0 ? -EIO : -errno;
		done += (uint64_t)count;
	}
	return 0;
}

/* One page of the image, from its own page space or its base's. */
static int read_page(const struct paged *it, void *to, uint64_t from) {
	return read_whole(from & PAGE_FROM_BASE ? it->base : it->pages, to, PAGE, from & ~PAGE_FROM_BASE);
}

/* ---- installing the recorded set ---- */

struct reading {
	const struct paged *owner;
	const struct page_range *ranges;
	uint32_t count, next;
	uint8_t *buffer;
	int error;
};

/* Page by page, as that many faults at once would be. */
static void *read_some(void *argument) {
	struct reading *work = argument;
	for (;;) {
		uint32_t index = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
		if (index >= work->count) return NULL;
		const struct page_range *range = &work->ranges[index];
		for (uint64_t at = 0; at < range->bytes; at += PAGE) {
			int result = read_page(work->owner, work->buffer + range->at + at, range->from + at);
			if (result < 0) __atomic_store_n(&work->error, result, __ATOMIC_RELAXED);
		}
	}
}

static int read_in_parallel(const struct paged *owner, const struct page_range *ranges, uint32_t count, uint8_t *buffer) {
	struct reading work = {.owner = owner, .ranges = ranges, .count = count, .buffer = buffer};
	pthread_t readers[READERS];
	unsigned made = 0;
	while (made < READERS && pthread_create(&readers[made], NULL, read_some, &work) == 0) made++;
	if (made == 0) read_some(&work);
	for (unsigned index = 0; index < made; index++) pthread_join(readers[index], NULL);
	return work.error;
}

/* One read of the whole working-set file. `direct` is cleared when its file system offers no O_DIRECT. */
static int read_set(int set, uint8_t *buffer, uint64_t bytes, uint32_t *direct) {
	if (!*direct) return read_whole(set, buffer, bytes, 0);
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", set);
	/* Opened anew: the flag belongs to the open file, which the keeper shares. */
	int own = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (own < 0 && errno != EINVAL) return -errno;
	if (own < 0) {
		*direct = 0;
		return read_whole(set, buffer, bytes, 0);
	}
	int result = read_whole(own, buffer, bytes, 0);
	close(own);
	return result;
}

static int install(struct space *space, const struct page_plan *plan, const struct page_range *ranges, int set, struct paged_report *report) {
	uint64_t began_ns = now_ns();
	uint8_t *buffer = NULL;
	int result = 0;
	if (plan->set_bytes > 0) {
		buffer = mmap(NULL, plan->set_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (buffer == MAP_FAILED) return -ENOMEM;
		if (plan->mode == PAGE_PARALLEL) result = read_in_parallel(space->owner, ranges, plan->copies, buffer);
		else result = read_set(set, buffer, plan->set_bytes, &report->direct);
	}
	uint64_t read_ns = now_ns();
	/* The function has not begun: nobody waits, and nobody need be woken. */
	for (uint32_t index = 0; index < plan->copies + plan->zeros && result == 0; index++) {
		const struct page_range *range = &ranges[index];
		if (index < plan->copies) result = fill(space, range->address, buffer + range->at, range->bytes, UFFDIO_COPY_MODE_DONTWAKE);
		else result = fill_zeros(space, range->address, range->bytes, UFFDIO_ZEROPAGE_MODE_DONTWAKE);
		mark_served(space, range->address, range->address + range->bytes);
		report->pages += (uint32_t)(range->bytes / PAGE);
	}
	if (buffer != NULL) munmap(buffer, plan->set_bytes);
	report->regions = plan->copies + plan->zeros;
	report->read_us = (uint32_t)((read_ns - began_ns) / 1000);
	report->install_us = (uint32_t)((now_ns() - read_ns) / 1000);
	return result;
}

/* ---- from the gate to the end ---- */

static void space_watch(struct space *space) {
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = space};
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, space->uffd, &event) != 0) die("epoll_ctl on a userfaultfd");
}

static void space_free(struct space *space) {
	if (space->uffd >= 0) close(space->uffd);
	free(space->ranges);
	free(space->served);
	free(space);
}

static int register_ranges(struct space *space) {
	struct uffdio_api api = {.api = UFFD_API, .features = FEATURES};
	if (ioctl(space->uffd, UFFDIO_API, &api) != 0) return -errno;
	for (size_t at = 0; at < space->count; at++) {
		const struct range *range = &space->ranges[at];
		struct uffdio_register asked = {.range = {range->start, range->end - range->start}, .mode = UFFDIO_REGISTER_MODE_MISSING};
		if (ioctl(space->uffd, UFFDIO_REGISTER, &asked) != 0) return -errno;
	}
	return 0;
}

static int reopen_random(int fd) {
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	int own = open(path, O_RDONLY | O_CLOEXEC);
	/* One page for each fault: the kernel shall not read more than was asked for. */
	if (own >= 0) posix_fadvise(own, 0, 0, POSIX_FADV_RANDOM);
	return own;
}

void space_adopt(uint32_t id, int fds[ADOPT_FDS]) {
	struct paged *it = must(calloc(1, sizeof *it));
	struct space *space = must(calloc(1, sizeof *space));
	*it = (struct paged){.id = id, .pages = reopen_random(fds[ADOPT_PAGES]), .base = reopen_random(fds[ADOPT_BASE]), .spaces = space};
	*space = (struct space){.uffd = fds[ADOPT_UFFD], .owner = it};
	table_put(&paged, id, it);
	struct stat info = {0};
	const struct page_plan *plan = fstat(fds[ADOPT_PLAN], &info) == 0 && info.st_size >= (off_t)sizeof *plan ? mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fds[ADOPT_PLAN], 0) : MAP_FAILED;
	const struct page_range *ranges = (const struct page_range *)(plan + 1);
	bool usable = plan != MAP_FAILED && plan->magic == PAGE_PLAN_MAGIC && sizeof *plan + ((uint64_t)plan->segments + plan->copies + plan->zeros) * sizeof *ranges <= (uint64_t)info.st_size;
	int result = !usable ? -EPROTO : it->pages < 0 || it->base < 0 ? -EMFILE : 0;
	struct pager_answer done = {.kind = PAGER_INSTALLED, .id = id};
	if (result == 0) {
		uint64_t index = 0;
		for (uint32_t at = 0; at < plan->segments; at++) {
			const struct page_range *from = &ranges[at];
			range_add(space, (struct range){from->address, from->address + from->bytes, from->from, index, from->at != 0});
			index += from->bytes / PAGE;
		}
		it->bitmap_bytes = index / 8 + 1;
		result = it->bitmap_bytes > LISTS_BYTES_MAX ? -ENOMEM : 0;
		if (result == 0) space->served = must(calloc(1, it->bitmap_bytes));
		done.report.direct = plan->mode == PAGE_DIRECT;
		if (result == 0) result = register_ranges(space);
		if (result == 0) result = install(space, plan, ranges + plan->segments, fds[ADOPT_SET], &done.report);
		if (result == 0) space_watch(space);
	}
	if (plan != MAP_FAILED) munmap((void *)plan, (size_t)info.st_size);
	uint64_t one = 1;
	if (result < 0) failed(it, -result, "the pager cannot fill this memory");
	else if (pager_answer(&done), write(fds[ADOPT_GATE], &one, sizeof one) != sizeof one) failed(it, errno, "the gate cannot be opened");
	for (int at = 0; at < ADOPT_FDS; at++) if (at != ADOPT_UFFD && fds[at] >= 0) close(fds[at]);
}

void space_drop(uint32_t id) {
	struct paged *it = table_get(&paged, id);
	if (it == NULL) return;
	table_put(&paged, id, NULL);
	while (it->spaces != NULL) {
		struct space *space = it->spaces;
		it->spaces = space->next;
		space_free(space);
	}
	if (it->pages >= 0) close(it->pages);
	if (it->base >= 0) close(it->base);
	free(it->trace);
	free(it);
}

/* The pages that faulted, in order: address, and 1 in its lowest bit where the access was a write. */
int space_trace(uint32_t id, const uint64_t **trace, size_t *count) {
	struct paged *it = table_get(&paged, id);
	if (it == NULL) return -ESRCH;
	*trace = it->trace;
	*count = it->traced;
	return 0;
}

/* ---- faults and events ---- */

static void note(struct paged *it, uint64_t address, bool write) {
	if (it->traced == it->trace_cap) {
		it->trace_cap = it->trace_cap * 2 + 256;
		it->trace = must(realloc(it->trace, it->trace_cap * sizeof *it->trace));
	}
	it->trace[it->traced++] = address | (write ? 1 : 0);
}

static void serve_fault(struct space *space, uint64_t address, bool write) {
	address &= ~(uint64_t)(PAGE - 1);
	struct range *range = range_at(space, address);
	uint64_t index = range == NULL ? 0 : range->index + (address - range->start) / PAGE;
	bool stored = range != NULL && (range->file || !served(space, index));
	int result = 0;
	if (stored) result = read_page(space->owner, page_buffer, range->offset + (address - range->start));
	if (result < 0) return failed(space->owner, -result, "a page of the image cannot be read");
	bool zero = !stored || memcmp(page_buffer, zeros, PAGE) == 0;
	result = zero ? fill_zeros(space, address, PAGE, 0) : fill(space, address, page_buffer, PAGE, 0);
	/* The process ended (ESRCH), or the address means nothing any more (ENOENT); or an event must be read first: it faults again. */
	if (result == -ESRCH) return;
	if (result == -ENOENT || result == -EAGAIN) return wake(space, address);
	if (result < 0) return failed(space->owner, -result, "a page cannot be given to the function");
	/* It may have been there already, and who waits for it not be woken by the failed copy. */
	wake(space, address);
	if (stored && space->next == NULL && !served(space, index)) note(space->owner, address, write);
	mark_served(space, address, address + PAGE);
}

/* A memory that is gone answers ESRCH; one that lives has nothing at this address. */
static bool gone(const struct space *space) { return fill_zeros(space, PAGE, PAGE, UFFDIO_ZEROPAGE_MODE_DONTWAKE) == -ESRCH; }

static uint64_t lists_bytes(const struct paged *it) {
	uint64_t bytes = 0;
	for (const struct space *space = it->spaces; space != NULL; space = space->next) bytes += it->bitmap_bytes + space->cap * sizeof *space->ranges;
	return bytes;
}

static void forked(struct space *parent, int uffd) {
	struct paged *it = parent->owner;
	/* Those that ended meanwhile: a function may fork as often as it likes. */
	for (struct space **link = &it->spaces; (*link)->next != NULL;) {
		struct space *child = *link;
		if (child == parent || !gone(child)) {
			link = &child->next;
			continue;
		}
		*link = child->next;
		space_free(child);
	}
	struct space *child = must(calloc(1, sizeof *child));
	*child = (struct space){.uffd = uffd, .owner = it, .next = it->spaces};
	if (lists_bytes(it) + it->bitmap_bytes + parent->count * sizeof *parent->ranges > LISTS_BYTES_MAX) {
		/* Kept, and not watched: its faults wait for its end. Closed, it would read zeros. */
		it->spaces = child;
		return failed(it, ENOMEM, "it forks with more memory than the pager can keep count of");
	}
	for (size_t at = 0; at < parent->count; at++) range_add(child, parent->ranges[at]);
	child->served = must(malloc(it->bitmap_bytes));
	memcpy(child->served, parent->served, it->bitmap_bytes);
	fcntl(uffd, F_SETFD, FD_CLOEXEC);
	fcntl(uffd, F_SETFL, O_NONBLOCK);
	it->spaces = child;
	space_watch(child);
}

static void handle(struct space *space, const struct uffd_msg *message) {
	uint64_t from, end;
	switch (message->event) {
	case UFFD_EVENT_PAGEFAULT:
		return serve_fault(space, message->arg.pagefault.address, message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE);
	case UFFD_EVENT_FORK:
		return forked(space, (int)message->arg.fork.ufd);
	case UFFD_EVENT_REMAP:
		from = message->arg.remap.from;
		end = from + message->arg.remap.len;
		/* What the memory had at the new address is gone with the mapping that was there. */
		ranges_cut(space, message->arg.remap.to, message->arg.remap.to + message->arg.remap.len, NULL);
		return ranges_cut(space, from, end, &(uint64_t){message->arg.remap.to});
	case UFFD_EVENT_REMOVE:
		return mark_served(space, message->arg.remove.start, message->arg.remove.end);
	case UFFD_EVENT_UNMAP:
		return ranges_cut(space, message->arg.remove.start, message->arg.remove.end, NULL);
	default:
		return failed(space->owner, EPROTO, "an event of its memory is not understood");
	}
}

void space_turn(int epoll, int timeout_ms) {
	struct epoll_event event;
	/* One at a time: what is handled may end others. */
	if (epoll_wait(epoll, &event, 1, timeout_ms) != 1) return;
	if (event.data.ptr == NULL) return pager_order();
	struct space *space = event.data.ptr;
	struct uffd_msg messages[MESSAGES_A_READ];
	ssize_t count = read(space->uffd, messages, sizeof messages);
	for (ssize_t at = 0; at < count / (ssize_t)sizeof *messages; at++) handle(space, &messages[at]);
	if (count >= 0 || errno == EAGAIN || errno == EINTR) return;
	/* Most likely there is no descriptor for the memory of a child. Whoever forked it waits until this is read: for ever. */
	failed(space->owner, errno, "what happens to its memory cannot be read");
	epoll_ctl(epoll, EPOLL_CTL_DEL, space->uffd, NULL);
}

void space_start(int epoll) { epoll_fd = epoll; }
