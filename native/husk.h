/* What the parts of the husk share: system calls without a libc, and what each part does for the others. See husk.c for the theory of operation. */
#pragma once
#include <asm/unistd.h>
#include <stdbool.h>
#include "abi.h"

/* One program, linked by itself: nothing is looked up when it starts. */
#pragma GCC visibility push(hidden)

#define EPROTO_ 71
#define E2BIG_ 7
#define ERRNO_MAX 4095UL

#define O_CLOEXEC_ 02000000
#define F_DUPFD_CLOEXEC_ 1030
#define PROT_RW_ 3
#define MAP_PRIVATE_ 2
#define MAP_FIXED_ 0x10
#define MAP_ANONYMOUS_ 0x20

/* System calls: raw, returning -errno. */

static inline long raw6(long nr, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}
#define raw(nr, ...) RAW_PICK(__VA_ARGS__, 6, 5, 4, 3, 2, 1)(nr, __VA_ARGS__)
#define RAW_PICK(a, b, c, d, e, f, n, ...) RAW_##n
#define RAW_1(nr, a) raw6(nr, (long)(a), 0, 0, 0, 0, 0)
#define RAW_2(nr, a, b) raw6(nr, (long)(a), (long)(b), 0, 0, 0, 0)
#define RAW_3(nr, a, b, c) raw6(nr, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define RAW_4(nr, a, b, c, d) raw6(nr, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define RAW_5(nr, a, b, c, d, e) raw6(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define RAW_6(nr, a, b, c, d, e, f) raw6(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static inline bool failed(long result)
{
	return (unsigned long)result >= -ERRNO_MAX;
}

/* husk.c */
/* The compiler may call these even when freestanding. */
void *memcpy(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);

/* husk-channel.c */
void stamp(uint64_t index);
void begin_report(void);
void send_report(long status, uint32_t op);
_Noreturn void give_up(long status, uint32_t op);
/* The descriptor itself, or in its place one from `base` on. */
long keep_above(long fd, long base);
/* Receives one run; its descriptors go to fd_base and above, where no program wants its own. Returns the program's. */
long receive_run(struct husk_run *run, uint64_t *fds);
long give(long fd, uint64_t kind);

/* husk-threads.c */
_Noreturn void thread_main(const struct thread_state *state);
long make_spares(uint64_t count);
long make_thread(const struct thread_state *state, bool waits);
/* Lets spares become what they were made, and, if `all`, threads go that wait to run code of the function. */
long release_threads(bool all);
/* What threads are made with stays where no program wants its own descriptors. */
void keep_init_above(long base);

/* husk-program.c */
void make_room(void);
/* Receives a program, runs it, and reports. */
void run_next(void);
