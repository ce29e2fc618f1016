/*
 * One thread that is held by ptrace(2): waiting for its stops, having it run until the next one, its registers (part of the extractor).
 */
#include "tracee.h"
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define TICK_US 100000

static volatile sig_atomic_t ticks, ticks_max;

static void on_tick(int signal)
{
	(void)signal;
	ticks++;
}

/*
 * A thread that waits for a child of vfork(2), or for a device, does not stop, and one that runs a call or a script on our behalf may never end it, if
 * somebody else changed its code or the descriptors that it was told of: the wait for them is bounded by as many ticks. 0: no more.
 */
void bound_waits(int most)
{
	struct sigaction action = { .sa_handler = on_tick };
	struct timeval tick = { 0, most ? TICK_US : 0 };
	ticks = 0;
	ticks_max = most;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &(struct itimerval){ tick, tick }, NULL);
}

/* Stops that came while another thread was waited for. */
static struct {
	pid_t tid;
	int status;
} early[THREADS_MAX];
static int early_count;

void forget_stops(void)
{
	early_count = 0;
}

/* It cannot go on: its registers are not its own. */
static _Noreturn void endless(void)
{
	no_way_back(true);
	errno = 0;
	die("it does not end what is run on its behalf");
}

/*
 * The status of the stop; ENDED: the thread is no more. Any thread is waited for: of a process that was killed, the kernel tells the main thread's end only after the
 * ends of all others were heard, so that who waits for the main one alone waits for ever, and keeps the dead process from being buried.
 */
int wait_stop(pid_t tid)
{
	int status;
	for (int i = 0; i < early_count; i++) {
		if (early[i].tid == tid) {
			status = early[i].status;
			early[i] = early[--early_count];
			return status;
		}
	}
	for (;;) {
		pid_t got = waitpid(-1, &status, __WALL);
		if (got < 0 && errno == EINTR && (ticks_max == 0 || ticks < ticks_max))
			continue;
		if (got < 0 && errno == EINTR && ticks_max == CALL_TICKS_MAX)
			endless();
		if (got < 0 && errno == EINTR)
			refuse("one of its threads cannot be stopped: it waits in the kernel (for a child of vfork?)");
		if (got < 0)
			return ENDED;
		if (WIFEXITED(status) || WIFSIGNALED(status))
			status = ENDED;
		if (got == tid)
			return status;
		if (early_count == THREADS_MAX)
			die("too many threads stop at once");
		early[early_count].tid = got;
		early[early_count++].status = status;
	}
}

/* No fault of what the function does, so nothing is refused. */
_Noreturn void killed(void)
{
	errno = 0;
	die("it was killed while it was being stopped");
}

/* The stop that was asked for, not one for a signal. Such a one may come before it, or after it, or in its place (it clears what was asked). */
bool is_interrupt(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP;
}

void run(pid_t tid, enum __ptrace_request how, int signal)
{
	if (ptrace(how, tid, NULL, (void *)(long)signal) != 0)
		die("cannot run a system call in the process: %s", strerror(errno));
}

/* Of a stop for SIGTRAP: the kernel's own word for a step or a breakpoint, not one that somebody sent. */
static bool from_kernel(pid_t tid)
{
	siginfo_t info;
	return ptrace(PTRACE_GETSIGINFO, tid, NULL, &info) != 0 || info.si_code > 0;
}

/*
 * Until it stops for `how` itself, for half a minute at most. Two signals come through whatever is held back: SIGSTOP, which is handed on (the thread stops
 * at once for the group's sake, and is sent on), and a SIGTRAP that was sent, which waits for release_all.
 */
void ran(struct thread *thread, enum __ptrace_request how)
{
	bound_waits(CALL_TICKS_MAX);
	for (;;) {
		int status = wait_stop(thread->tid), signal = 0;
		if (status == ENDED)
			killed();
		if (ticks >= ticks_max) /* who sends it such signals without end */
			endless();
		if (!is_interrupt(status)) {
			signal = WSTOPSIG(status);
			if (signal != SIGSTOP && (signal != SIGTRAP || from_kernel(thread->tid)))
				break;
			thread->trapped |= signal == SIGTRAP;
			signal = signal == SIGTRAP ? 0 : signal;
		}
		run(thread->tid, how, signal);
	}
	bound_waits(0);
}

void transfer_regs(const struct thread *thread, enum __ptrace_request how, uint64_t regs[27])
{
	struct iovec vector = { regs, 27 * sizeof *regs };
	if (ptrace(how, thread->tid, (void *)NT_PRSTATUS, &vector) != 0)
		die("cannot %s registers: %s", how == PTRACE_GETREGSET ? "read" : "set", strerror(errno));
}
