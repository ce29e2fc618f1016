/*
 * Replacing the memory of a stopped process by mappings of a file (part of the extractor). It makes the calls itself: the file gets
 * into it by a socket pair of its own, and a script runs them in one go.
 */
#include "deflate.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Not in the headers of older distributions. */
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

/*
 * The page in which run_script works lies in the husk's zone, which no function uses. Descriptor and message for recvmsg lie in it, too.
 */
enum { MESSAGE_AT = 0, PAIR_AT = 64, VECTOR_AT = 72, BYTE_AT = 88, CONTROL_AT = 96, ACTION_AT = 256, HEAD_BYTES = 4096 };
struct workshop {
	uint64_t at, bytes;
	int theirs[2]; /* of a socket pair; -1: none */
	int swap;      /* the file, in the process */
};

static long do_one(struct deflation *d, long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t e, uint64_t f, uint64_t g)
{
	return inject(d->target, &d->target->threads[0], nr, (uint64_t[6]){ a, b, c, e, f, g });
}

/* Nothing of it may stay in a process that goes on. */
static void leave_workshop(struct deflation *d, struct workshop *shop)
{
	for (int i = 0; i < 2; i++)
		if (shop->theirs[i] >= 0)
			do_one(d, SYS_close, (uint64_t)shop->theirs[i], 0, 0, 0, 0, 0);
	if (shop->swap >= 0)
		do_one(d, SYS_close, (uint64_t)shop->swap, 0, 0, 0, 0, 0);
	do_one(d, SYS_munmap, shop->at, shop->bytes, 0, 0, 0, 0);
}

static _Noreturn void give_up(struct deflation *d, struct workshop *shop, const char *what, long result)
{
	leave_workshop(d, shop);
	errno = result < 0 ? (int)-result : errno;
	die("%s: %s", what, strerror(errno));
}

/* The file gets into the process by a socket pair that it makes and whose other end is taken over: its own sockets are not touched. */
static void enter_workshop(struct deflation *d, struct workshop *shop, size_t calls)
{
	*shop = (struct workshop){ .at = HUSK_WORKSHOP_AT, .bytes = (HEAD_BYTES + SCRIPT_TABLE_AT + calls * sizeof(struct script_call) + PAGE - 1) & ~(PAGE - 1),
				   .theirs = { -1, -1 }, .swap = -1 };
	long at = do_one(d, SYS_mmap, shop->at, shop->bytes, PROT_READ | PROT_WRITE | PROT_EXEC,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0);
	if (at != (long)shop->at)
		die("cannot work in the process: %s", strerror(at < 0 ? (int)-at : EEXIST));
	long result = do_one(d, SYS_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, shop->at + PAIR_AT, 0, 0);
	if (result < 0 || pread(d->mem, shop->theirs, sizeof shop->theirs, (off_t)(shop->at + PAIR_AT)) != sizeof shop->theirs)
		give_up(d, shop, "cannot hand the file to the process", result);
	int mine = take_descriptor(d->target->pid, shop->theirs[0]);
	char name[32];
	snprintf(name, sizeof name, "/proc/self/fd/%d", SWAP_FD);
	int readable = open(name, O_RDONLY | O_CLOEXEC); /* private mappings need no more */
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec byte = { "", 1 };
	struct msghdr message = { .msg_iov = &byte, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	*CMSG_FIRSTHDR(&message) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
	memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &readable, sizeof readable);
	if (mine < 0 || readable < 0 || sendmsg(mine, &message, MSG_DONTWAIT | MSG_NOSIGNAL) != 1)
		give_up(d, shop, "cannot hand the file to the process", 0);
	close(mine);
	close(readable);
	struct msghdr theirs = { .msg_iov = (void *)(shop->at + VECTOR_AT), .msg_iovlen = 1, .msg_control = (void *)(shop->at + CONTROL_AT),
				 .msg_controllen = sizeof control };
	struct iovec vector = { (void *)(shop->at + BYTE_AT), 1 };
	if (pwrite(d->mem, &theirs, sizeof theirs, (off_t)(shop->at + MESSAGE_AT)) != sizeof theirs ||
	    pwrite(d->mem, &vector, sizeof vector, (off_t)(shop->at + VECTOR_AT)) != sizeof vector)
		give_up(d, shop, "cannot write into the process", 0);
	result = do_one(d, SYS_recvmsg, (uint64_t)shop->theirs[1], shop->at + MESSAGE_AT, MSG_CMSG_CLOEXEC | MSG_DONTWAIT, 0, 0, 0);
	if (result != 1 || pread(d->mem, &control, sizeof control, (off_t)(shop->at + CONTROL_AT)) != sizeof control)
		give_up(d, shop, "cannot hand the file to the process", result);
	memcpy(&shop->swap, (char *)&control + CMSG_LEN(0), sizeof shop->swap);
}
_Static_assert(sizeof(struct msghdr) <= PAIR_AT, "message");

static struct script_call call(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t e, uint64_t f, uint64_t g)
{
	return (struct script_call){ .nr = (uint64_t)nr, .args = { a, b, c, e, f, g } };
}

/*
 * What a thread touches before it sleeps again in what it was stopped in: the kernel writes its rseq area and reads its futex. A
 * private copy of that page now spares the dozens of neighbours that a read fault would map with it.
 */
static void touch(struct deflation *d, uint64_t address)
{
	uint32_t word;
	if (address && pread(d->mem, &word, sizeof word, (off_t)(address & ~3ULL)) == sizeof word)
		(void)!pwrite(d->mem, &word, sizeof word, (off_t)(address & ~3ULL));
}

static void keep_threads(struct deflation *d)
{
	for (int i = 0; i < d->target->thread_count; i++) {
		struct thread *thread = &d->target->threads[i];
		touch(d, thread->rseq);
		if (thread->original_regs[R_ORIG_RAX] == SYS_futex)
			touch(d, thread->original_regs[R_RDI]);
	}
}

/* Private pages in the parts that are to be kept, by address. */
static void find_held(struct deflation *d, const struct view *view)
{
	for (size_t i = 0; i < view->piece_count && d->kept_count; i++) {
		const struct piece *piece = &view->pieces[i];
		size_t k = 0;
		for (size_t j = 0; piece->mapped && j < piece->range_count; j++) {
			uint64_t start = piece->ranges[j].start - piece->start + piece->offset;
			uint64_t end = piece->ranges[j].end - piece->start + piece->offset, to_address = piece->start - piece->offset;
			while (k > 0 && d->kept[k - 1].end > start)
				k--;
			for (; k < d->kept_count && d->kept[k].start < end; k++) {
				uint64_t from = d->kept[k].start > start ? d->kept[k].start : start;
				uint64_t to = d->kept[k].end < end ? d->kept[k].end : end;
				if (from >= to)
					continue;
				d->held = grow(d->held, d->held_count, &d->held_room, sizeof *d->held);
				d->held[d->held_count++] = (struct range){ from + to_address, to + to_address, false };
			}
		}
	}
}

/* Up to `end`, the first part from `*at` on that is not held; empty when there is none. */
struct range next_free(const struct deflation *d, uint64_t *at, uint64_t end)
{
	struct range free = { *at, end, false };
	for (size_t i = 0; i < d->held_count && d->held[i].start < end; i++) {
		if (d->held[i].end <= free.start)
			continue;
		if (d->held[i].start > free.start) {
			free.end = d->held[i].start;
			break;
		}
		free.start = d->held[i].end;
	}
	*at = free.end;
	return free;
}

void remap(struct deflation *d, const struct view *view)
{
	size_t count = 0;
	for (int i = 0; i < d->target->thread_count; i++)
		read_rseq(&d->target->threads[i]);
	find_held(d, view);
	size_t room = view->piece_count + view->guard_count + 2 * view->vma_count + d->held_count + 1;
	struct script_call *calls = malloc(room * sizeof *calls);
	if (!calls)
		die("out of memory");
	struct workshop shop;
	enter_workshop(d, &shop, room);
	/* More addresses than the machine has memory may have been reserved; the kernel would refuse that at once. */
	for (size_t i = 0; i < view->piece_count; i++) {
		const struct piece *piece = &view->pieces[i];
		if (!piece->mapped)
			calls[count++] = call(SYS_mmap, piece->start, piece->end - piece->start, (uint64_t)piece->prot, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
					      (uint64_t)shop.swap, piece->offset);
	}
	size_t mapped = count;
	/*
	 * One call for all mappings between two that stay. Unmapped addresses between them are skipped (ENOMEM says so). From now on a
	 * fault brings its own page, of the interpreter's files too: what else will be needed is known from the recording, and megabytes
	 * around it would be guesses. (Since Linux 6.16 the kernel heeds that in no executable mapping.)
	 */
	for (size_t i = 0; i < view->vma_count; i++) {
		if (left_alone(&view->vmas[i]))
			continue;
		uint64_t start = view->vmas[i].start, end = view->vmas[i].end;
		while (i + 1 < view->vma_count && !left_alone(&view->vmas[i + 1]) &&
		       (view->vmas[i + 1].start >= HUSK_ZONE_END) == (start >= HUSK_ZONE_END))
			end = view->vmas[++i].end;
		calls[count++] = call(SYS_madvise, start, end - start, MADV_RANDOM, 0, 0, 0);
		for (struct range free = next_free(d, &start, end); free.start < free.end; free = next_free(d, &start, end))
			calls[count++] = call(SYS_madvise, free.start, free.end - free.start, MADV_DONTNEED, 0, 0, 0);
	}
	for (size_t i = 0; i < view->guard_count; i++)
		calls[count++] = call(SYS_madvise, view->guards[i].start, view->guards[i].end - view->guards[i].start, MADV_GUARD_INSTALL, 0, 0, 0);
	/* The script ends in a breakpoint. Where SIGTRAP is ignored, it would be ignored no more. */
	long known = d->target->steps ? 0 : do_one(d, SYS_rt_sigaction, SIGTRAP, 0, shop.at + ACTION_AT, 8, 0, 0);
	if (known != 0)
		give_up(d, &shop, "cannot read the action of SIGTRAP", known);
	no_way_back(true);
	run_script(d->target, d->mem, shop.at + HEAD_BYTES, calls, count);
	if (!d->target->steps)
		do_one(d, SYS_rt_sigaction, SIGTRAP, shop.at + ACTION_AT, 0, 8, 0, 0);
	for (size_t i = 0; i < count; i++) {
		bool well = i < mapped ? calls[i].result == (int64_t)calls[i].args[0] : calls[i].result == 0 || calls[i].result == -ENOMEM;
		if (!well)
			die("the kernel refused to replace its memory at 0x%" PRIx64 ": %s", calls[i].args[0], strerror((int)-calls[i].result));
	}
	leave_workshop(d, &shop);
	keep_threads(d);
	no_way_back(false);
	free(calls);
}
