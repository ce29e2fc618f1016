/*
 * Stopping a process and letting it go (part of the extractor).
 *
 * Threads are seized, not attached: no signal is sent. PTRACE_O_EXITKILL: should the extractor die in the middle,
 * the process dies too rather than run on with foreign registers. PTRACE_O_SUSPEND_SECCOMP: the function's own filter
 * would answer EPERM to the system calls that are run on its behalf (inject.c).
 */
#include "tracee.h"
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PARK_MS_MAX 5000
#define PARK_WAIT_NS 500000
#define PARK_AGAIN_TRIES 20
#define SEIZE_ROUNDS 64
#define ENDING_WAIT_NS 50000
#define ENDING_MS_MAX 2000

/* Runtimes park in one of these on the control socket. */
static bool waits_for_request(const struct target *target, long nr, uint64_t fd)
{
	return fd == (uint64_t)target->control_fd && (nr == SYS_read || nr == SYS_readv || nr == SYS_recvfrom || nr == SYS_recvmsg);
}

static bool parked(const struct target *target)
{
	char path[64], text[256];
	snprintf(path, sizeof path, "/proc/%d/syscall", target->pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die("cannot look at process %d: %s", target->pid, strerror(errno));
	ssize_t got = read(fd, text, sizeof text - 1);
	close(fd);
	if (got <= 0)
		return false;
	text[got] = 0;
	long nr;
	unsigned long fd_argument;
	return sscanf(text, "%ld %lx", &nr, &fd_argument) == 2 && waits_for_request(target, nr, fd_argument);
}

static bool within(uint64_t *since, uint64_t ms)
{
	uint64_t now = clock_ns(CLOCK_MONOTONIC);
	if (*since == 0)
		*since = now;
	return now - *since < ms * 1000000;
}

bool may_park(uint64_t *since)
{
	nanosleep(&(struct timespec){ 0, PARK_WAIT_NS }, NULL);
	return within(since, PARK_MS_MAX);
}

static void wait_parked(const struct target *target)
{
	for (uint64_t since = 0; !parked(target);)
		if (!may_park(&since))
			refuse("its main thread does not wait for a request (it never returned to the runtime)");
}

static bool known(const struct target *target, pid_t tid)
{
	for (int i = 0; i < target->thread_count; i++)
		if (target->threads[i].tid == tid)
			return true;
	return false;
}

/*
 * A signal that is about to be delivered is, and not lost: a thread that was to run a handler stops at its first instruction. False
 * when the thread ended first: neither request finds one that is ending, but waiting does.
 */
static bool interrupt(pid_t tid)
{
	for (int status = 0; !is_interrupt(status);) {
		if (status != 0 && ptrace(PTRACE_CONT, tid, NULL, (void *)(long)WSTOPSIG(status)) != 0 && errno != ESRCH)
			die("cannot hand thread %d its signal: %s", tid, strerror(errno));
		if (ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) != 0 && errno != ESRCH)
			die("cannot interrupt thread %d: %s", tid, strerror(errno));
		status = wait_stop(tid);
		if (status == ENDED)
			return false;
	}
	return true;
}

/* One that ended cannot be seized, and the kernel says EPERM of it as of one that it does not allow. */
static bool is_over(pid_t pid, pid_t tid)
{
	char text[2048];
	const char *state = read_stat(pid, tid, text, sizeof text);
	return !state || state[1] == 'Z' || state[1] == 'X';
}

/* False when the thread ends first. */
static bool seize(const struct target *target, pid_t tid, struct thread *thread)
{
	memset(thread, 0, sizeof *thread);
	thread->tid = tid;
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) != 0) {
		int error = errno;
		if (error == ESRCH || (error == EPERM && is_over(target->pid, tid)))
			return false;
		die("cannot stop thread %d: %s", tid, strerror(error));
	}
	if (!interrupt(tid))
		return false;
	/* Only now: one that never stopped shall outlive us, and one that still runs has its filter. */
	long options = HOLD_OPTIONS | PTRACE_O_SUSPEND_SECCOMP;
	if (ptrace(PTRACE_SETOPTIONS, tid, NULL, (void *)options) != 0)
		die("cannot hold thread %d: %s", tid, strerror(errno));
	return true;
}

/*
 * All but the main thread. New ones may appear while others are being stopped: repeat until a round finds none. The list of them ends early where one ends that is
 * being read, so the kernel's own count has to agree.
 */
static void seize_others(struct target *target)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/task", target->pid);
	uint64_t since = 0;
	for (int round = 0; round < SEIZE_ROUNDS;) {
		int before = target->thread_count;
		DIR *tasks = opendir(path);
		if (!tasks)
			die("cannot list threads: %s", strerror(errno));
		for (struct dirent *entry; (entry = readdir(tasks));) {
			pid_t tid = atoi(entry->d_name);
			if (tid <= 0 || known(target, tid))
				continue;
			if (target->thread_count == THREADS_MAX)
				refuse("it has more than %d threads", THREADS_MAX);
			target->thread_count += seize(target, tid, &target->threads[target->thread_count]);
		}
		closedir(tasks);
		if (target->thread_count != before) {
			round++;
			continue;
		}
		/* Those that are ending included: they may wait for a processor. */
		if (read_status(target->pid, target->pid, "Threads:", 10, 0) == (uint64_t)before)
			return;
		if (is_over(target->pid, target->pid))
			killed();
		if (!within(&since, ENDING_MS_MAX))
			put_off("one of its threads does not end");
		nanosleep(&(struct timespec){ 0, ENDING_WAIT_NS }, NULL);
	}
	refuse("it keeps making threads");
}

static void get_regs(struct thread *thread)
{
	transfer_regs(thread, PTRACE_GETREGSET, thread->original_regs);
	memcpy(thread->regs, thread->original_regs, sizeof thread->regs);
	if (thread->regs[R_CS] != 0x33)
		refuse("a thread runs 32-bit code");
	make_restartable(thread);
}

/*
 * Whether the main thread, which alone runs, has come back to its read. It left it for a signal that another thread had sent before it was stopped, as V8's
 * profiler does each millisecond: nobody sends one now.
 */
static bool parks_again(const struct target *target)
{
	for (int i = 0; i < PARK_AGAIN_TRIES; i++) {
		if (parked(target))
			return true;
		nanosleep(&(struct timespec){ 0, PARK_WAIT_NS }, NULL);
	}
	if (is_over(target->pid, target->pid))
		killed();
	return false; /* its handler may need what a stopped thread holds */
}

/*
 * Stops every thread, or the main one alone, if the main one waits for a request; else nothing is stopped. The main one comes last: what others sent it is
 * heard then, and does not lie there when signals are looked at.
 */
static bool try_stop(struct target *target, bool all, uint64_t *began)
{
	if (!parked(target))
		return false;
	*began = clock_ns(CLOCK_MONOTONIC);
	struct thread *main_thread = &target->threads[0];
	memset(main_thread, 0, sizeof *main_thread);
	main_thread->tid = target->pid;
	target->thread_count = 1;
	bound_waits(STOP_TICKS_MAX);
	if (all)
		seize_others(target);
	if (!all || parks_again(target)) {
		if (!seize(target, target->pid, main_thread))
			killed();
		if (all)
			seize_others(target); /* who was made by such a handler */
		bound_waits(0);
		get_regs(main_thread);
		const uint64_t *regs = main_thread->original_regs;
		if (waits_for_request(target, (long)regs[R_ORIG_RAX], regs[R_RDI]))
			return true;
	}
	bound_waits(0);
	release_all(target);
	return false;
}

/* What is sent to it meanwhile stays pending. SIGTRAP is how our calls in it end: a blocked one would be made to kill. */
static void hold_signals(struct thread *thread)
{
	uint64_t held = ~(1ULL << (SIGTRAP - 1));
	if (ptrace(PTRACE_GETSIGMASK, thread->tid, (void *)8, &thread->sigmask) != 0 ||
	    ptrace(PTRACE_SETSIGMASK, thread->tid, (void *)8, &held) != 0)
		die("cannot hold signals back: %s", strerror(errno));
	thread->masked = true;
}

/*
 * Whether a thread is still the husk's: of a process that was thawed a moment ago, one that has not had a processor since has neither its registers
 * nor anything else of the function's. It needs nobody to go on: the main one, which waits for a request, has let all others go.
 */
static bool unborn(const struct thread *thread)
{
	return thread->original_regs[R_RIP] >= HUSK_ZONE_START && thread->original_regs[R_RIP] < HUSK_ZONE_END;
}

uint64_t stop_all(struct target *target)
{
	uint64_t began, since = 0;
	for (int attempt = 0;;) {
		wait_parked(target);
		if (!try_stop(target, true, &began)) {
			if (attempt++ == 20)
				refuse("its main thread does not wait for a request");
			continue;
		}
		bool whole = true;
		for (int i = 1; i < target->thread_count; i++) {
			get_regs(&target->threads[i]);
			whole &= !unborn(&target->threads[i]);
		}
		if (whole)
			break;
		release_all(target);
		if (!may_park(&since))
			put_off("one of its threads has not run since the thaw");
	}
	for (int i = 0; i < target->thread_count; i++)
		hold_signals(&target->threads[i]);
	return began;
}

bool stop_in_place(struct target *target, bool all, uint64_t *began)
{
	if (!try_stop(target, all, began))
		return false;
	hold_signals(&target->threads[0]);
	/* The kernel itself restarts what others wait in, with the time that remains: their registers are not written back, but where it restarts nothing. */
	for (int i = 1; i < target->thread_count; i++) {
		struct thread *thread = &target->threads[i];
		transfer_regs(thread, PTRACE_GETREGSET, thread->original_regs);
		if (waited_for_ever(thread->original_regs))
			get_regs(thread);
	}
	return true;
}

/* One was sent while it was stopped: its handler may count on the call to end. */
static bool has_signal(const struct target *target, const struct thread *thread)
{
	uint64_t pending = read_status(target->pid, thread->tid, "SigPnd:", 16, 0) | read_status(target->pid, thread->tid, "ShdPnd:", 16, 0);
	uint64_t blocked = thread->masked ? thread->sigmask : read_status(target->pid, thread->tid, "SigBlk:", 16, 0);
	return (pending & ~blocked) != 0;
}

void release_all(struct target *target)
{
	for (int i = target->thread_count - 1; i >= 0; i--) {
		struct thread *thread = &target->threads[i];
		bool hears = waited_for_ever(thread->original_regs) && has_signal(target, thread);
		struct iovec vector = { sleeps_on(thread->original_regs) || hears ? thread->original_regs : thread->regs, sizeof thread->regs };
		if (thread->regs[R_RSP] != 0)
			ptrace(PTRACE_SETREGSET, thread->tid, (void *)NT_PRSTATUS, &vector);
		if (thread->masked)
			ptrace(PTRACE_SETSIGMASK, thread->tid, (void *)8, &thread->sigmask);
		if (thread->trapped)
			syscall(SYS_tgkill, target->pid, thread->tid, SIGTRAP);
		ptrace(PTRACE_DETACH, thread->tid, NULL, NULL);
		free(thread->xstate);
		thread->xstate = NULL;
	}
	target->thread_count = 0;
	forget_stops();
}
