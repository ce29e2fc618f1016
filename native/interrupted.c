/*
 * The system call in which a thread was stopped, and what is to become of it in an image: known by its number, by the instruction that
 * loads it, or by its arguments (part of the extractor).
 */
#include "tracee.h"
#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

/* Numbers below are no addresses; more descriptors than that nobody waits for. */
#define ADDRESS_MIN 4096
#define DESCRIPTORS_MAX (1 << 20)

/* Errors with which the kernel marks a system call to be restarted. */
enum { E_RESTARTSYS = 512, E_RESTARTNOINTR = 513, E_RESTARTNOHAND = 514, E_RESTART_RESTARTBLOCK = 516 };

static void restart(struct thread *thread)
{
	thread->regs[R_RIP] -= 2;
	thread->regs[R_RAX] = thread->regs[R_ORIG_RAX];
	thread->restarts = true;
}

/*
 * The number of the system call before which `rip` lies, by the instruction that loads it: `mov $number, %eax`, with at most one of four bytes (glibc's
 * `xor $0x80, %sil`) in between. -1: it is loaded in another way.
 */
static long call_at(const struct thread *thread)
{
	uint8_t code[11];
	struct iovec local = { code, sizeof code }, remote = { (void *)(thread->regs[R_RIP] - sizeof code), sizeof code };
	if (process_vm_readv(thread->tid, &local, 1, &remote, 1, 0) != (ssize_t)sizeof code)
		return -1;
	for (int i = 4; i >= 0; i -= 4) {
		uint32_t number;
		memcpy(&number, code + i + 1, sizeof number);
		if (code[i] == 0xb8 && number <= INT32_MAX)
			return (long)number;
	}
	return -1;
}

static bool is_time(const struct thread *thread, uint64_t address)
{
	struct timespec time;
	struct iovec local = { &time, sizeof time }, remote = { (void *)address, sizeof time };
	return process_vm_readv(thread->tid, &local, 1, &remote, 1, 0) == (ssize_t)sizeof time && time.tv_sec >= 0 && time.tv_nsec >= 0 &&
	       time.tv_nsec < 1000000000;
}

/*
 * Which of the waits it was by its arguments, which the kernel leaves in their registers: for callers that have the number in a register, as `syscall()` and,
 * since glibc 2.41, all that can be cancelled. -1: two would have been possible.
 */
static long call_by_arguments(const struct thread *thread)
{
	uint64_t first = thread->regs[R_RDI], second = thread->regs[R_RSI], third = thread->regs[R_RDX], fourth = thread->regs[R_R10];
	int64_t clock = (int32_t)first;
	uint64_t operation = second & ~(uint64_t)(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME);
	if ((operation == FUTEX_WAIT || operation == FUTEX_WAIT_BITSET) && first > ADDRESS_MIN && first % 4 == 0 && is_time(thread, fourth))
		return SYS_futex;
	/* Those of processor time are negative. */
	if (clock < ADDRESS_MIN && (first == (uint64_t)clock || first == (uint32_t)clock) && second == 0 && is_time(thread, third))
		return SYS_clock_nanosleep;
	bool polls = second <= DESCRIPTORS_MAX && (second == 0 || first > ADDRESS_MIN) && third > 0 && third <= INT32_MAX;
	bool sleeps = (second == 0 || second > DESCRIPTORS_MAX) && is_time(thread, first);
	return polls == sleeps ? -1 : polls ? SYS_poll : SYS_nanosleep;
}

/*
 * A wait of which the kernel has noted how long it still lasts (nanosleep, poll, a futex with a limit). An image cannot have that note: one until a point in time
 * goes on as it was meant, one for a time begins anew. No signal has come, so the caller need not expect to be interrupted, nor to find the time that
 * remains where the kernel has written none. One that was stopped and went on before has the kernel's number for that; what it was say the code or its arguments.
 */
static void restart_from_start(struct thread *thread)
{
	if (thread->regs[R_ORIG_RAX] == SYS_restart_syscall) {
		long number = call_at(thread);
		if (number < 0)
			number = call_by_arguments(thread);
		if (number != SYS_nanosleep && number != SYS_clock_nanosleep && number != SYS_poll && number != SYS_futex) {
			thread->regs[R_RAX] = (uint64_t)-EINTR;
			return;
		}
		thread->regs[R_ORIG_RAX] = (uint64_t)number;
	}
	restart(thread);
}

/*
 * Whether it was in a wait without limit that the kernel never restarts, and that ended with EINTR. Nothing but our stop interrupted it: who was sent a
 * signal runs its handler by now.
 */
bool waited_for_ever(const uint64_t regs[27])
{
	if ((int64_t)regs[R_RAX] != -EINTR)
		return false;
	switch ((int64_t)regs[R_ORIG_RAX]) {
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
		return (int32_t)regs[R_R10] < 0;
	case SYS_epoll_pwait2:
		return regs[R_R10] == 0;
	case SYS_rt_sigtimedwait:
		return regs[R_RDX] == 0;
	}
	return false;
}

void make_restartable(struct thread *thread)
{
	if ((int64_t)thread->regs[R_ORIG_RAX] < 0)
		return;
	switch (-(int64_t)thread->regs[R_RAX]) {
	case E_RESTARTSYS:
	case E_RESTARTNOINTR:
	case E_RESTARTNOHAND:
		restart(thread);
		break;
	case E_RESTART_RESTARTBLOCK:
		restart_from_start(thread);
		break;
	case EINTR:
		if (waited_for_ever(thread->original_regs))
			restart(thread);
		break;
	}
	thread->regs[R_ORIG_RAX] = (uint64_t)-1;
}

bool sleeps_on(const uint64_t regs[27])
{
	return (int64_t)regs[R_ORIG_RAX] >= 0 && -(int64_t)regs[R_RAX] == E_RESTART_RESTARTBLOCK;
}
