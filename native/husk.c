/*
 * husk: an empty process that becomes a function.
 *
 * Theory of operation. The keeper executes this program inside a finished sandbox. It moves its vdso out of the
 * way, drops every mapping outside its own zone of addresses (HUSK_ZONE_START..END), and then executes
 * programs: flat lists of system calls that TypeScript compiled from an image's manifest (src/image/program.ts).
 * Each arrives on the channel with the descriptors that it uses. One ends in OP_RESUME, which turns this process
 * into the frozen one by rt_sigreturn, or in execve, which boots an interpreter.
 *
 *   stage        who runs it                 takes away
 *   start        _start → husk_main          the kernel's stack, all signals (blocked)
 *   programs     run_next, any number        nothing; a pooled husk waits between two of them
 *   threads      OP_THREAD → thread_main     –; they wait for OP_RELEASE
 *   resume       OP_RESUME                   the channel and all temporary descriptors (closed by the program), this code
 *
 * Receiving and reporting is husk-channel.c, running a program husk-program.c, threads husk-threads.c.
 *
 * There is no libc, no allocation, and no state but arrays whose bounds are constants. Every failed
 * system call is reported with the index of its operation, and ends the process: a half-made function never runs.
 */
#include "husk.h"

#define O_RDONLY_ 0
#define MREMAP_FIXED_MAYMOVE_ 3
#define SIG_BLOCK_ 0

/* Pages of these that were touched stay with the function: small state shares one with the beginning of the text, and the stack's end is a page's (husk.ld). */
static char boot_stack[16384] __attribute__((used, aligned(4096), section(".bss.stack")));
static char maps_text[16384] __attribute__((section(".bss.text")));

void *memcpy(void *to, const void *from, size_t bytes)
{
	void *start = to;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
	return start;
}

void *memset(void *to, int value, size_t bytes)
{
	void *start = to;
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
	return start;
}

static uint64_t parse_hex(const char **at)
{
	uint64_t value = 0;
	for (;; (*at)++) {
		char c = **at;
		if (c >= '0' && c <= '9')
			value = value * 16 + (uint64_t)(c - '0');
		else if (c >= 'a' && c <= 'f')
			value = value * 16 + (uint64_t)(c - 'a' + 10);
		else
			return value;
	}
}

static bool has_prefix(const char *text, const char *end, const char *prefix)
{
	while (*prefix) {
		if (text >= end || *text++ != *prefix++)
			return false;
	}
	return true;
}

/*
 * Moves [vvar*] and [vdso] to HUSK_VDSO_AT, keeping their distances (they are one block, and an image knows
 * its own by the same distances), and unmaps all else outside the zone. [vsyscall] belongs to the kernel.
 */
static void clear_address_space(void)
{
	char *text = maps_text;
	long fd = raw(__NR_open, "/proc/self/maps", O_RDONLY_ | O_CLOEXEC_, 0);
	if (failed(fd))
		give_up(fd, 0);
	long bytes = 0;
	for (;;) {
		long got = raw(__NR_read, fd, text + bytes, sizeof maps_text - 1 - (size_t)bytes);
		if (failed(got))
			give_up(got, 0);
		if (got == 0)
			break;
		bytes += got;
		if (bytes == (long)sizeof maps_text - 1)
			give_up(-E2BIG_, 0);
	}
	raw(__NR_close, fd);
	text[bytes] = 0;
	uint64_t block = 0;
	const char *at = text, *end = text + bytes;
	while (at < end) {
		uint64_t from = parse_hex(&at);
		at++;
		uint64_t to = parse_hex(&at);
		const char *name = at;
		while (at < end && *at != '\n') {
			if (*at == '[' || *at == '/')
				break;
			at++;
		}
		name = at;
		const char *line_end = at;
		while (line_end < end && *line_end != '\n')
			line_end++;
		at = line_end + 1;
		if (from >= HUSK_ZONE_START && from < HUSK_ZONE_END)
			continue;
		if (has_prefix(name, line_end, "[vsyscall]"))
			continue;
		long result;
		if (has_prefix(name, line_end, "[vvar") || has_prefix(name, line_end, "[vdso]")) {
			if (block == 0)
				block = from;
			result = raw(__NR_mremap, from, to - from, to - from, MREMAP_FIXED_MAYMOVE_,
				     HUSK_VDSO_AT + (from - block));
		} else {
			result = raw(__NR_munmap, from, to - from);
		}
		if (failed(result))
			give_up(result, 0);
	}
}

__attribute__((used)) static _Noreturn void husk_main(void)
{
	uint64_t all = ~0ULL;
	raw(__NR_rt_sigprocmask, SIG_BLOCK_, &all, 0, sizeof all);
	clear_address_space();
	long result = raw(__NR_mmap, HUSK_STACKS_AT, HUSK_STACK_BYTES * HUSK_THREADS_MAX, PROT_RW_,
			  MAP_PRIVATE_ | MAP_FIXED_ | MAP_ANONYMOUS_, -1, 0);
	if (failed(result))
		give_up(result, 0);
	make_room();
	for (;;)
		run_next();
}

__attribute__((naked, used, section(".text.start"))) void _start(void)
{
	__asm__ volatile("lea boot_stack(%%rip), %%rsp\n\t"
			 "add %0, %%rsp\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "call husk_main\n\t"
			 "ud2"
			 :
			 : "i"(sizeof boot_stack));
}
