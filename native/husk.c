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
 *   programs     run_program, any number     nothing; a pooled husk waits between two of them
 *   threads      OP_THREAD → thread_main     –; they wait for OP_RELEASE
 *   resume       OP_RESUME                   the channel and all temporary descriptors (closed by the program), this code
 *
 * There is no libc, no allocation, and no state but the arrays below, whose bounds are constants. Every failed
 * system call is reported with the index of its operation, and ends the process: a half-made function never runs.
 */
#include <stdbool.h>
#include <asm/unistd.h>
#include <linux/time_types.h>
#include "abi.h"

#define EIO_ 5
#define EINVAL_ 22
#define E2BIG_ 7
#define EEXIST_ 17
#define ESTALE_ 116
#define EPROTO_ 71
#define ERRNO_MAX 4095UL

#define O_RDONLY_ 0
#define O_CLOEXEC_ 02000000
#define F_SETFD_ 2
#define FD_CLOEXEC_ 1
#define F_DUPFD_CLOEXEC_ 1030
#define PROT_RW_ 3
#define MAP_PRIVATE_ 2
#define MAP_FIXED_ 0x10
#define MAP_ANONYMOUS_ 0x20
#define MADV_POPULATE_WRITE_ 23
#define MREMAP_FIXED_MAYMOVE_ 3
#define SIG_BLOCK_ 0
#define CLOCK_MONOTONIC_ 1
#define ARCH_SET_GS_ 0x1001
#define ARCH_SET_FS_ 0x1002
#define PR_SET_NAME_ 15
#define CAPABILITY_VERSION_3_ 0x20080522
#define SOL_SOCKET_ 1
#define SCM_RIGHTS_ 1
#define MSG_NOSIGNAL_ 0x4000
#define MSG_CMSG_CLOEXEC_ 0x40000000
#define FUTEX_WAIT_PRIVATE_ 128
#define FUTEX_WAKE_PRIVATE_ 129
#define CLONE_THREAD_FLAGS_ 0x00050f00 /* VM FS FILES SIGHAND THREAD SYSVSEM */

/* ---- system calls: raw, returning -errno ---- */

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

/* The compiler may call these even when freestanding. */
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

/* ---- state ---- */

static uint64_t slots[HUSK_SLOTS];
static struct husk_report report;
static long channel = HUSK_CHANNEL_FD, ask_fd = HUSK_ASK_FD, told_fd = HUSK_TOLD_FD;
static unsigned int threads_made;
static long last_number = 1; /* that a thread was given; 1 is init's */
static bool threads_waiting;
static uint32_t released; /* for which they wait */
static char boot_stack[16384] __attribute__((used, aligned(16)));

static uint64_t now_ns(void)
{
	struct __kernel_timespec now = { 0, 0 };
	raw(__NR_clock_gettime, CLOCK_MONOTONIC_, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

static void send_report(long status, uint32_t op, uint32_t resuming)
{
	report.magic = HUSK_REPORT_MAGIC;
	report.status = (int32_t)status;
	report.failed_op = op;
	report.resuming = resuming;
	raw(__NR_sendto, channel, &report, sizeof report, MSG_NOSIGNAL_, 0, 0);
}

static _Noreturn void give_up(long status, uint32_t op)
{
	send_report(status, op, 0);
	for (;;)
		raw(__NR_exit_group, 113);
}

/* ---- start: make room ---- */

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
	static char text[16384];
	long fd = raw(__NR_open, "/proc/self/maps", O_RDONLY_ | O_CLOEXEC_, 0);
	if (failed(fd))
		give_up(fd, 0);
	long bytes = 0;
	for (;;) {
		long got = raw(__NR_read, fd, text + bytes, sizeof text - 1 - (size_t)bytes);
		if (failed(got))
			give_up(got, 0);
		if (got == 0)
			break;
		bytes += got;
		if (bytes == (long)sizeof text - 1)
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

/* ---- operations ---- */

/*
 * A thread keeps its number, which locks in the function's memory note as their owner's; the main one's is the process's, and new. That is noted where the
 * C library keeps it.
 */
static void set_thread_facts(const struct thread_state *state)
{
	int32_t number = (int32_t)raw(__NR_set_tid_address, state->tid_address);
	if (state->tid_word)
		*(volatile int32_t *)state->tid_word = number;
	raw(__NR_arch_prctl, ARCH_SET_FS_, state->fs_base);
	if (state->gs_base)
		raw(__NR_arch_prctl, ARCH_SET_GS_, state->gs_base);
	if (state->robust_list)
		raw(__NR_set_robust_list, state->robust_list, state->robust_bytes);
	if (state->rseq) {
		long result = raw(__NR_rseq, state->rseq, state->rseq_bytes, 0, state->rseq_signature);
		if (failed(result))
			give_up(result, 0);
	}
	raw(__NR_prctl, PR_SET_NAME_, state->name);
}

static _Noreturn void become(uint64_t frame)
{
	__asm__ volatile("mov %0, %%rsp\n\tmov %1, %%eax\n\tsyscall\n\tud2" : : "r"(frame + 8), "i"(__NR_rt_sigreturn) : "memory");
	__builtin_unreachable();
}

__attribute__((used)) static _Noreturn void thread_main(const struct thread_state *state)
{
	set_thread_facts(state);
	become(state->frame);
}

/* One that would run code of the function. */
__attribute__((used)) static _Noreturn void waiting_thread_main(const struct thread_state *state)
{
	set_thread_facts(state);
	while (!__atomic_load_n(&released, __ATOMIC_ACQUIRE))
		raw(__NR_futex, &released, FUTEX_WAIT_PRIVATE_, 0, 0, 0, 0);
	become(state->frame);
}

static long run_syscall(const struct program_op *op)
{
	long args[6];
	for (int i = 0; i < 6; i++) {
		uint64_t value = op->args[i];
		if (op->slot_mask & (1u << i))
			value = slots[value & (HUSK_SLOTS - 1)] + (value >> 8);
		args[i] = (long)value;
	}
	return raw6(op->nr, args[0], args[1], args[2], args[3], args[4], args[5]);
}

/*
 * clone(2) for a thread that starts in `entry(argument)` on its own small stack and never returns.
 * A function call cannot cross the stack switch, hence the assembly.
 */
static long start_thread(void (*entry)(void), const void *argument)
{
	if (threads_made >= HUSK_THREADS_MAX)
		return -E2BIG_;
	uint64_t top = HUSK_STACKS_AT + (uint64_t)++threads_made * HUSK_STACK_BYTES - 64;
	uint64_t *stack = (uint64_t *)top;
	stack[0] = (uint64_t)entry;
	stack[1] = (uint64_t)argument;
	long result;
	register long r10 __asm__("r10") = 0;
	register long r8 __asm__("r8") = 0;
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "pop %%rax\n\t"
			 "pop %%rdi\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "sub $8, %%rsp\n\t"
			 "jmp *%%rax\n"
			 "1:"
			 : "=a"(result)
			 : "a"((long)__NR_clone), "D"((long)CLONE_THREAD_FLAGS_), "S"(stack), "d"(0), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	if (!failed(result))
		last_number = result;
	return result;
}

/*
 * A pooled husk makes threads ahead of the request that needs them: to clone one costs several times what it costs to wake it.
 * They learn what they become at OP_RELEASE, and those that nobody needs end there.
 */
static struct {
	const struct thread_state *state;
	long number;
	bool waits;
} spares[HUSK_SPARES_MAX];
static uint32_t spares_made, spares_go;

/* Capabilities belong to a thread. The main one needs its own until a program drops them, these never do. */
static void drop_capabilities(void)
{
	const uint32_t header[2] = { CAPABILITY_VERSION_3_, 0 }, none[6] = { 0 };
	long result = raw(__NR_capset, header, none);
	if (failed(result))
		give_up(result, 0);
}

__attribute__((used)) static _Noreturn void spare_main(const void *argument)
{
	uint64_t index = (uint64_t)argument;
	drop_capabilities();
	while (!__atomic_load_n(&spares_go, __ATOMIC_ACQUIRE))
		raw(__NR_futex, &spares_go, FUTEX_WAIT_PRIVATE_, 0, 0, 0, 0);
	const struct thread_state *state = spares[index].state;
	for (; !state;)
		raw(__NR_exit, 0);
	if (spares[index].waits)
		waiting_thread_main(state);
	thread_main(state);
}

static long make_spares(uint64_t count)
{
	for (uint64_t i = 0; i < count && i < HUSK_SPARES_MAX; i++) {
		long result = start_thread((void (*)(void))spare_main, (const void *)i);
		if (failed(result))
			return result;
		spares[spares_made++].number = result;
	}
	return 0;
}

/* The kernel gives numbers in order; that the next one is `number` only init can see to (native/sandbox.c). */
static long ask_for_number(uint64_t number)
{
	uint64_t answer;
	long result = raw(__NR_write, ask_fd, &number, sizeof number);
	if (!failed(result))
		result = raw(__NR_read, told_fd, &answer, sizeof answer);
	return failed(result) ? result : -(long)(answer - HUSK_NUMBER_SET);
}

static long make_thread(const struct thread_state *state, bool waits)
{
	threads_waiting |= waits;
	for (uint32_t i = 0; i < spares_made && !spares_go; i++) {
		if ((uint64_t)spares[i].number != state->number)
			continue;
		spares[i].waits = waits;
		spares[i].state = state;
		return 0;
	}
	long result = state->number == (uint64_t)last_number + 1 ? 0 : ask_for_number(state->number);
	if (!failed(result))
		result = start_thread(waits ? (void (*)(void))waiting_thread_main : (void (*)(void))thread_main, state);
	return failed(result) || (uint64_t)result == state->number ? result : -EEXIST_;
}

/* struct stat of x86-64, the fields that identify a file. */
struct kernel_stat {
	uint64_t dev, inode, links;
	uint32_t mode, uid, gid, pad;
	uint64_t rdev;
	int64_t size, block_bytes, blocks;
	int64_t atime_s, atime_ns, mtime_s, mtime_ns, ctime_s, ctime_ns;
	int64_t unused[3];
};
_Static_assert(sizeof(struct kernel_stat) == 144, "struct stat");

static long check_identity(long fd, const struct file_identity *want)
{
	struct kernel_stat is;
	long result = raw(__NR_fstat, fd, &is);
	if (failed(result))
		return result;
	bool same = is.inode == want->inode && (uint64_t)is.size == want->size && is.mtime_s == want->mtime_s &&
		    is.mtime_ns == want->mtime_ns && is.ctime_s == want->ctime_s && is.ctime_ns == want->ctime_ns;
	return same ? 0 : -ESTALE_;
}

static long install(long fd, long target, bool cloexec)
{
	if (fd == target)
		return raw(__NR_fcntl, fd, F_SETFD_, cloexec ? FD_CLOEXEC_ : 0);
	long result = raw(__NR_dup3, fd, target, cloexec ? O_CLOEXEC_ : 0);
	if (failed(result))
		return result;
	return raw(__NR_close, fd);
}

static uint64_t argument(const struct program_op *op, int index)
{
	uint64_t value = op->args[index];
	if (op->slot_mask & (1u << index))
		return slots[value & (HUSK_SLOTS - 1)] + (value >> 8);
	return value;
}

struct io_vector {
	void *base;
	uint64_t bytes;
};
struct message_header {
	void *name;
	uint32_t name_bytes, pad1;
	struct io_vector *vectors;
	uint64_t vector_count;
	void *control;
	uint64_t control_bytes;
	int32_t flags, pad2;
};
struct control_message {
	uint64_t bytes;
	int32_t level, type;
	int32_t fds[HUSK_FDS_MAX + 1];
	int32_t pad;
};
/* cmsg_len of so many descriptors: a header of 16 bytes, then the descriptors. */
#define CONTROL_BYTES(count) (16 + (uint64_t)(count) * sizeof(int32_t))

/* Sends a descriptor to the keeper and closes it here: what shall outlive this husk's own code stays nowhere in the function. */
static long give(long fd, uint64_t kind)
{
	struct husk_gift gift = { HUSK_GIFT_MAGIC, (uint32_t)kind };
	struct io_vector vector = { &gift, sizeof gift };
	struct control_message control = { CONTROL_BYTES(1), SOL_SOCKET_, SCM_RIGHTS_, { (int32_t)fd }, 0 };
	struct message_header header = { 0, 0, 0, &vector, 1, &control, CONTROL_BYTES(1), 0, 0 };
	long sent = raw(__NR_sendmsg, channel, &header, MSG_NOSIGNAL_);
	if (failed(sent))
		return sent;
	return raw(__NR_close, fd);
}

/* What the server has lower by now, as another shell or supervisor started it, cannot be raised: of each pair the lower ones hold. */
static long limit(uint64_t resource, uint64_t soft, uint64_t hard)
{
	uint64_t has[2];
	long result = raw(__NR_prlimit64, 0, resource, 0, has);
	if (failed(result))
		return result;
	uint64_t want[2] = { soft, hard < has[1] ? hard : has[1] };
	if (want[0] > want[1])
		want[0] = want[1];
	/* Nearly all are what every husk has. */
	if (want[0] == has[0] && want[1] == has[1])
		return 0;
	return raw(__NR_prlimit64, 0, resource, want, 0);
}

static long run_op(const struct program_op *op, uint32_t index)
{
	switch (op->kind) {
	case OP_SYSCALL:
		return run_syscall(op);
	case OP_STAMP:
		report.stamps[op->args[0] & (HUSK_STAMPS - 1)] = now_ns();
		return 0;
	case OP_INSTALL:
		return install((long)argument(op, 0), (long)argument(op, 1), op->args[2] != 0);
	case OP_POKE:
		if (op->args[2] == 4)
			*(volatile uint32_t *)argument(op, 0) = (uint32_t)argument(op, 1);
		else
			*(volatile uint64_t *)argument(op, 0) = argument(op, 1);
		return 0;
	case OP_LOAD:
		return *(volatile int32_t *)argument(op, 0);
	case OP_IDENTITY:
		return check_identity((long)argument(op, 0), (const struct file_identity *)argument(op, 1));
	case OP_THREAD:
		return make_thread((const struct thread_state *)argument(op, 0), argument(op, 1) != 0);
	case OP_TOUCH: {
		/* Writes without changing anything: the kernel copies the page. */
		const uint64_t *pages = (const uint64_t *)argument(op, 0);
		for (uint64_t i = 0; i < op->args[1]; i++)
			__asm__ volatile("lock orb $0, (%0)" : : "r"(pages[i]) : "memory");
		return 0;
	}
	case OP_RELEASE:
		if (spares_made && !spares_go) {
			__atomic_store_n(&spares_go, 1, __ATOMIC_RELEASE);
			raw(__NR_futex, &spares_go, FUTEX_WAKE_PRIVATE_, HUSK_THREADS_MAX, 0, 0, 0);
		}
		if (argument(op, 0) == 0)
			return 0;
		__atomic_store_n(&released, 1, __ATOMIC_RELEASE);
		return !threads_waiting ? 0 : raw(__NR_futex, &released, FUTEX_WAKE_PRIVATE_, HUSK_THREADS_MAX, 0, 0, 0);
	case OP_SPARES:
		return make_spares(argument(op, 0));
	case OP_REPORT:
		send_report(0, index, 1);
		return 0;
	case OP_GIVE:
		return give((long)argument(op, 0), op->args[1]);
	case OP_LIMIT:
		return limit(op->args[0], op->args[1], op->args[2]);
	case OP_RESUME: {
		const struct thread_state *state = (const struct thread_state *)argument(op, 0);
		set_thread_facts(state);
		become(state->frame);
	}
	default:
		return -EINVAL_;
	}
}

/* Room for programs of the usual size, faulted in ahead as far as most reach: copying one there costs a tenth of mapping it and faulting on it. */
static void make_room(void)
{
	const uint64_t rooms[2][2] = { { HUSK_PROGRAM_AT, HUSK_PROGRAM_ROOM }, { HUSK_RESUME_AT, HUSK_RESUME_ROOM } };
	for (int i = 0; i < 2; i++) {
		long result = raw(__NR_mmap, rooms[i][0], rooms[i][1], PROT_RW_, MAP_PRIVATE_ | MAP_FIXED_ | MAP_ANONYMOUS_, -1, 0);
		if (failed(result))
			give_up(result, 0);
	}
	raw(__NR_madvise, HUSK_PROGRAM_AT, HUSK_PROGRAM_AHEAD, MADV_POPULATE_WRITE_);
}

/* Brings a program to where its header says, in place of the one that was there. */
static const struct program_header *load_program(long program, const struct husk_run *run)
{
	static uint64_t mapped[2]; /* bytes, once a program was too large for the room */
	struct program_header header;
	long got = raw(__NR_pread64, program, &header, sizeof header, 0);
	if (got != sizeof header || (header.base != HUSK_PROGRAM_AT && header.base != HUSK_RESUME_AT) || run->program_bytes == 0 ||
	    run->program_bytes > HUSK_PROGRAM_BYTES_MAX)
		give_up(-EPROTO_, 0);
	uint64_t *old = &mapped[header.base == HUSK_RESUME_AT];
	if (!*old && run->program_bytes <= (header.base == HUSK_RESUME_AT ? HUSK_RESUME_ROOM : HUSK_PROGRAM_ROOM)) {
		got = raw(__NR_pread64, program, header.base, run->program_bytes, 0);
		if (got != (long)run->program_bytes)
			give_up(failed(got) ? got : -EPROTO_, 0);
		raw(__NR_close, program);
		return (const struct program_header *)header.base;
	}
	if (*old > run->program_bytes)
		raw(__NR_munmap, header.base, *old);
	*old = run->program_bytes;
	long result = raw(__NR_mmap, header.base, run->program_bytes, PROT_RW_, MAP_PRIVATE_ | MAP_FIXED_, program, 0);
	if (failed(result))
		give_up(result, 0);
	raw(__NR_close, program);
	return (const struct program_header *)header.base;
}

static void run_program(const struct program_header *header, const struct husk_run *run)
{
	if (header->magic != PROGRAM_MAGIC || header->version != HUSK_VERSION || header->total_bytes > run->program_bytes ||
	    header->ops_at + (uint64_t)header->op_count * sizeof(struct program_op) > header->total_bytes)
		give_up(-EPROTO_, 0);
	const struct program_op *ops = (const struct program_op *)((uint64_t)header + header->ops_at);
	for (uint32_t i = 0; i < header->op_count; i++) {
		const struct program_op *op = &ops[i];
		long result = run_op(op, i);
		if (failed(result) && !(op->flags & OP_FLAG_MAY_FAIL))
			give_up(result, i);
		if ((op->flags & OP_FLAG_EXPECT) && result != (long)op->expect)
			give_up(-EIO_, i);
		if (op->result_slot != NO_SLOT)
			slots[op->result_slot & (HUSK_SLOTS - 1)] = (uint64_t)result;
	}
}

/* ---- the channel ---- */

static long keep_above(long fd, long base)
{
	if (fd >= base)
		return fd;
	long moved = raw(__NR_fcntl, fd, F_DUPFD_CLOEXEC_, base);
	if (failed(moved))
		give_up(moved, 0);
	raw(__NR_close, fd);
	return moved;
}

/* Receives one run; its descriptors go to fd_base and above, where no program wants its own. Returns the program's. */
static long receive_run(struct husk_run *run)
{
	static struct control_message control;
	struct io_vector vector = { run, sizeof *run };
	struct message_header header = { 0, 0, 0, &vector, 1, &control, sizeof control, 0, 0 };
	long got = raw(__NR_recvmsg, channel, &header, MSG_CMSG_CLOEXEC_);
	if (got == 0) /* the keeper let this husk go */
		for (;;)
			raw(__NR_exit_group, 0);
	if (failed(got))
		give_up(got, 0);
	if (got != sizeof *run || run->magic != HUSK_RUN_MAGIC || run->fd_count > HUSK_FDS_MAX)
		give_up(-EPROTO_, 0);
	uint64_t count = (control.bytes - 16) / sizeof(int32_t);
	if (header.control_bytes == 0 || control.level != SOL_SOCKET_ || control.type != SCM_RIGHTS_ || count != run->fd_count + 1ULL)
		give_up(-EPROTO_, 0);
	channel = keep_above(channel, run->fd_base);
	ask_fd = keep_above(ask_fd, run->fd_base);
	told_fd = keep_above(told_fd, run->fd_base);
	for (uint64_t i = 1; i < count; i++)
		slots[i - 1] = (uint64_t)keep_above(control.fds[i], run->fd_base);
	return control.fds[0];
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
	for (;;) {
		struct husk_run run;
		long program = receive_run(&run);
		memset(&report, 0, sizeof report);
		report.stamps[0] = now_ns();
		run_program(load_program(program, &run), &run);
		send_report(0, 0, 0);
	}
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
