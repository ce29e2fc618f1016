/*
 * Threads of the process that a husk becomes (part of the husk): made with the numbers that they had, ahead of time or when a program
 * says so, they wait until they are let go, and take on what they were by rt_sigreturn.
 */
#include "husk.h"

#define EEXIST_ 17

#define ARCH_SET_GS_ 0x1001
#define ARCH_SET_FS_ 0x1002
#define PR_SET_NAME_ 15
#define CAPABILITY_VERSION_3_ 0x20080522
#define FUTEX_WAIT_PRIVATE_ 128
#define FUTEX_WAKE_PRIVATE_ 129
#define CLONE_THREAD_FLAGS_ 0x00050f00 /* VM FS FILES SIGHAND THREAD SYSVSEM */

static long ask_fd = HUSK_ASK_FD, told_fd = HUSK_TOLD_FD;
static unsigned int threads_made;
static long last_number = 1; /* that a thread was given; 1 is init's */
static bool threads_waiting;
static uint32_t released; /* for which they wait */

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

_Noreturn void thread_main(const struct thread_state *state)
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

long make_spares(uint64_t count)
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

long make_thread(const struct thread_state *state, bool waits)
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

long release_threads(bool all)
{
	if (spares_made && !spares_go) {
		__atomic_store_n(&spares_go, 1, __ATOMIC_RELEASE);
		raw(__NR_futex, &spares_go, FUTEX_WAKE_PRIVATE_, HUSK_THREADS_MAX, 0, 0, 0);
	}
	if (!all)
		return 0;
	__atomic_store_n(&released, 1, __ATOMIC_RELEASE);
	return !threads_waiting ? 0 : raw(__NR_futex, &released, FUTEX_WAKE_PRIVATE_, HUSK_THREADS_MAX, 0, 0, 0);
}

void keep_init_above(long base)
{
	ask_fd = keep_above(ask_fd, base);
	told_fd = keep_above(told_fd, base);
}
