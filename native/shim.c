/*
 * Keeps V8's pages together. An LD_PRELOAD library for node.
 *
 * Theory of operation
 * -------------------
 * V8 asks for each 256 KiB page of its heap at a random address, as a hint: mmap(hint, 508 KiB), then munmap of what is
 * not needed for its alignment. Each page thus ends up alone, as a mapping of its own, and a thaw pays for each mapping.
 * This library answers such requests out of one arena, a large reservation without access, lowest free place first, so
 * that the kernel merges neighbours of equal protection into one mapping.
 *
 * The arena is divided into units of 64 pages, the size and alignment of V8's pages. One 64-bit word describes a unit:
 * bit n is set while page n is handed out. A unit is free when its word is 0.
 *
 *   mmap    claims a run of free units, word by word with compare-and-swap, then maps over the reservation.
 *   munmap  maps the reservation back (never unmaps, or the kernel could put something else there, over which the next
 *           mmap would write), then clears the bits. In this order no unit is ever free while its memory is in use.
 *
 * There is no lock, so a fork in another thread's claim leaks at most that claim in the child. V8's pages are not
 * copied to children (MADV_DONTFORK): their bits stay set there, so the holes they leave are not handed out.
 *
 * Everything else passes through: hints with MAP_FIXED, files, shared, executable or huge mappings, requests too small or too
 * large, and any request for which the arena has no room. mprotect, madvise and mremap need no help: the arena's memory
 * is ordinary memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE_BYTES 4096UL
#define UNIT_PAGES 64UL
#define UNIT_BYTES (UNIT_PAGES * PAGE_BYTES)
#define ARENA_BYTES (4UL << 30)
#define UNITS (ARENA_BYTES / UNIT_BYTES)
/* The code range (128 MiB) and WebAssembly's reservations must lie where they ask to; large objects need not. */
#define REQUEST_BYTES_MAX (64UL << 20)

#define RESERVED (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

/* Start of the arena. NONE: not made yet; MAKING: a thread is at it; REFUSED: the kernel had no room, for good. */
enum { NONE = 0, MAKING = 1, REFUSED = 2 };
static _Atomic uintptr_t arena_state = NONE;
static _Atomic uint64_t units[UNITS];

static void *raw_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, at, bytes, prot, flags, fd, offset);
}

/* The arena's address, made at the first call; 0 while there is none. */
static uintptr_t arena(void)
{
	uintptr_t state = atomic_load_explicit(&arena_state, memory_order_acquire);
	if (state > REFUSED)
		return state;
	uintptr_t expected = NONE;
	if (state != NONE || !atomic_compare_exchange_strong(&arena_state, &expected, MAKING))
		return 0;
	int saved_errno = errno;
	void *got = raw_mmap(NULL, ARENA_BYTES + UNIT_BYTES, PROT_NONE, RESERVED, -1, 0);
	errno = saved_errno;
	if (got == MAP_FAILED) {
		atomic_store(&arena_state, REFUSED);
		return 0;
	}
	uintptr_t raw = (uintptr_t)got;
	uintptr_t start = (raw + UNIT_BYTES - 1) & ~(UNIT_BYTES - 1);
	if (start > raw)
		syscall(SYS_munmap, raw, start - raw);
	if (raw + UNIT_BYTES > start)
		syscall(SYS_munmap, start + ARENA_BYTES, raw + UNIT_BYTES - start);
	atomic_store_explicit(&arena_state, start, memory_order_release);
	return start;
}

/* Bits of the pages from `first` up to, not including, `end` of one unit; end <= 64. */
static uint64_t page_bits(size_t first, size_t end)
{
	uint64_t below_end = end == UNIT_PAGES ? ~0ULL : (1ULL << end) - 1;
	return below_end & ~((1ULL << first) - 1);
}

/* Clears the bits of `pages` pages from page `first` of the arena on. */
static void release(size_t first, size_t pages)
{
	for (size_t page = first, end = first + pages; page < end;) {
		size_t unit = page / UNIT_PAGES;
		size_t unit_end = (unit + 1) * UNIT_PAGES < end ? (unit + 1) * UNIT_PAGES : end;
		atomic_fetch_and(&units[unit], ~page_bits(page % UNIT_PAGES, unit_end - unit * UNIT_PAGES));
		page = unit_end;
	}
}

/* Claims `pages` pages from the start of the lowest run of free units. Returns its first unit, or UNITS when there is none. */
static size_t claim(size_t pages)
{
	size_t needed = (pages + UNIT_PAGES - 1) / UNIT_PAGES;
	size_t first = 0;
	while (first + needed <= UNITS) {
		size_t taken = 0;
		for (; taken < needed; taken++) {
			size_t left = pages - taken * UNIT_PAGES;
			uint64_t expected = 0;
			uint64_t bits = page_bits(0, left < UNIT_PAGES ? left : UNIT_PAGES);
			if (atomic_load_explicit(&units[first + taken], memory_order_relaxed) != 0 ||
			    !atomic_compare_exchange_strong(&units[first + taken], &expected, bits))
				break;
		}
		if (taken == needed)
			return first;
		release(first * UNIT_PAGES, taken * UNIT_PAGES);
		first += taken + 1;
	}
	return UNITS;
}

static int suits(const void *hint, size_t bytes, int prot, int flags, int fd)
{
	return hint != NULL && fd == -1 && (flags & ~MAP_NORESERVE) == (MAP_PRIVATE | MAP_ANONYMOUS) && !(prot & PROT_EXEC) &&
	       bytes % PAGE_BYTES == 0 && bytes >= UNIT_BYTES && bytes <= REQUEST_BYTES_MAX;
}

void *mmap(void *hint, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	uintptr_t start;
	if (!suits(hint, bytes, prot, flags, fd) || (start = arena()) == 0)
		return raw_mmap(hint, bytes, prot, flags, fd, offset);
	size_t unit = claim(bytes / PAGE_BYTES);
	if (unit == UNITS)
		return raw_mmap(hint, bytes, prot, flags, fd, offset);
	/* MAP_NORESERVE for all: mappings with and without it do not merge. */
	int saved_errno = errno;
	void *got = raw_mmap((void *)(start + unit * UNIT_BYTES), bytes, prot, RESERVED | MAP_FIXED, -1, 0);
	if (got != MAP_FAILED)
		return got;
	/* A failed MAP_FIXED may have removed the reservation: the claim stays, so that nobody is given the hole. */
	errno = saved_errno;
	return raw_mmap(hint, bytes, prot, flags, fd, offset);
}

void *mmap64(void *hint, size_t bytes, int prot, int flags, int fd, off_t offset) __attribute__((alias("mmap")));

int munmap(void *at, size_t bytes)
{
	uintptr_t from = (uintptr_t)at;
	uintptr_t start = atomic_load_explicit(&arena_state, memory_order_acquire);
	size_t rounded = (bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
	uintptr_t end = from + rounded;
	if (start <= REFUSED || from % PAGE_BYTES != 0 || rounded < bytes || bytes == 0 || end < from || end <= start ||
	    from >= start + ARENA_BYTES)
		return (int)syscall(SYS_munmap, at, bytes);
	/* What lies outside is the kernel's; what lies inside goes back to the arena. */
	uintptr_t inside_from = from > start ? from : start;
	uintptr_t inside_end = end < start + ARENA_BYTES ? end : start + ARENA_BYTES;
	if (from < inside_from && syscall(SYS_munmap, from, inside_from - from) != 0)
		return -1;
	if (end > inside_end && syscall(SYS_munmap, inside_end, end - inside_end) != 0)
		return -1;
	size_t inside_bytes = inside_end - inside_from;
	if (raw_mmap((void *)inside_from, inside_bytes, PROT_NONE, RESERVED | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -1;
	release((inside_from - start) / PAGE_BYTES, inside_bytes / PAGE_BYTES);
	return 0;
}
