/*
 * Stopping a process, running system calls in it, and letting it go (part of the extractor).
 *
 * Threads are seized, not attached: no signal is sent. PTRACE_O_EXITKILL: should the extractor die in the middle,
 * the process dies too rather than run on with foreign registers. PTRACE_O_SUSPEND_SECCOMP: the function's own filter
 * would answer EPERM to the system calls that are run on its behalf.
 *
 * While a filter is suspended no instruction may run but those meant. Who is stopped cannot see to that alone: a child process writes
 * into its memory by /proc/PID/mem, and so may a thread that was not stopped. So one call is one step, or is looked at when the kernel
 * has it and before it runs; a script, which runs freely, runs under the filter.
 */
#include "extractor.h"
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PARK_MS_MAX 5000
#define PARK_WAIT_NS 500000
#define SEIZE_ROUNDS 64
#define ENDING_WAIT_NS 50000
#define ENDING_MS_MAX 2000
#define TICK_US 100000
#define STOP_TICKS_MAX 20
#define CALL_TICKS_MAX 300
/* Numbers below are no addresses; more descriptors than that nobody waits for. */
#define ADDRESS_MIN 4096
#define DESCRIPTORS_MAX (1 << 20)
#define HOLD_OPTIONS (PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL)

/* Errors with which the kernel marks a system call to be restarted. */
enum { E_RESTARTSYS = 512, E_RESTARTNOINTR = 513, E_RESTARTNOHAND = 514, E_RESTART_RESTARTBLOCK = 516 };

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
static void bound_waits(int most)
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
#define ENDED (-1)
static int wait_stop(pid_t tid)
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
static _Noreturn void killed(void)
{
	errno = 0;
	die("it was killed while it was being stopped");
}

/* The stop that was asked for, not one for a signal. Such a one may come before it, or after it, or in its place (it clears what was asked). */
static bool is_interrupt(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP;
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

static void run(pid_t tid, enum __ptrace_request how, int signal)
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
static void ran(struct thread *thread, enum __ptrace_request how)
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

uint64_t read_status(pid_t pid, pid_t tid, const char *name, int base, uint64_t otherwise)
{
	char path[64], line[256];
	size_t length = strlen(name);
	snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
	FILE *status = fopen(path, "re");
	while (status && fgets(line, sizeof line, status)) {
		if (strncmp(line, name, length) == 0) {
			otherwise = strtoull(line + length, NULL, base);
			break;
		}
	}
	if (status)
		fclose(status);
	return otherwise;
}

/* One that ended cannot be seized, and the kernel says EPERM of it as of one that it does not allow. */
static bool is_over(pid_t pid, pid_t tid)
{
	char text[2048];
	const char *state = read_stat(pid, tid, text, sizeof text);
	return !state || state[1] == 'Z' || state[1] == 'X';
}

/* Nothing when the thread ends first. */
static void seize(struct target *target, pid_t tid)
{
	if (target->thread_count == THREADS_MAX)
		refuse("it has more than %d threads", THREADS_MAX);
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) != 0) {
		int error = errno;
		if (error == ESRCH || (error == EPERM && is_over(target->pid, tid)))
			return;
		die("cannot stop thread %d: %s", tid, strerror(error));
	}
	struct thread *thread = &target->threads[target->thread_count++];
	memset(thread, 0, sizeof *thread);
	thread->tid = tid;
	if (!interrupt(tid)) {
		target->thread_count--;
		return;
	}
	/* Only now: one that never stopped shall outlive us, and one that still runs has its filter. */
	long options = HOLD_OPTIONS | PTRACE_O_SUSPEND_SECCOMP;
	if (ptrace(PTRACE_SETOPTIONS, tid, NULL, (void *)options) != 0)
		die("cannot hold thread %d: %s", tid, strerror(errno));
}

/*
 * New threads may appear while others are being stopped: repeat until a round finds none. The list of them ends early where one ends that is
 * being read, so the kernel's own count has to agree.
 */
static void seize_all(struct target *target)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/task", target->pid);
	seize(target, target->pid);
	if (target->thread_count == 0)
		killed();
	uint64_t since = 0;
	for (int round = 0; round < SEIZE_ROUNDS;) {
		int before = target->thread_count;
		DIR *tasks = opendir(path);
		if (!tasks)
			die("cannot list threads: %s", strerror(errno));
		for (struct dirent *entry; (entry = readdir(tasks));) {
			pid_t tid = atoi(entry->d_name);
			if (tid > 0 && !known(target, tid))
				seize(target, tid);
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

/* Registers are read and written as a whole. */
static void transfer_regs(const struct thread *thread, enum __ptrace_request how, uint64_t regs[27])
{
	struct iovec vector = { regs, 27 * sizeof *regs };
	if (ptrace(how, thread->tid, (void *)NT_PRSTATUS, &vector) != 0)
		die("cannot %s registers: %s", how == PTRACE_GETREGSET ? "read" : "set", strerror(errno));
}

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
static bool waited_for_ever(const uint64_t regs[27])
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

static void get_regs(struct thread *thread)
{
	transfer_regs(thread, PTRACE_GETREGSET, thread->original_regs);
	memcpy(thread->regs, thread->original_regs, sizeof thread->regs);
	if (thread->regs[R_CS] != 0x33)
		refuse("a thread runs 32-bit code");
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

/* Stops every thread, or the main one alone, if the main one waits for a request; else nothing is stopped. */
static bool try_stop(struct target *target, bool all, uint64_t *began)
{
	if (!parked(target))
		return false;
	*began = clock_ns(CLOCK_MONOTONIC);
	bound_waits(STOP_TICKS_MAX);
	if (all)
		seize_all(target);
	else
		seize(target, target->pid);
	bound_waits(0);
	if (target->thread_count == 0)
		killed();
	get_regs(&target->threads[0]);
	const uint64_t *regs = target->threads[0].original_regs;
	if (waits_for_request(target, (long)regs[R_ORIG_RAX], regs[R_RDI]))
		return true;
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
		/* The kernel has noted how long one that sleeps has still to sleep, and goes on with that. Only an image cannot. */
		bool sleeps = (int64_t)thread->original_regs[R_ORIG_RAX] >= 0 && -(int64_t)thread->original_regs[R_RAX] == E_RESTART_RESTARTBLOCK;
		bool hears = waited_for_ever(thread->original_regs) && has_signal(target, thread);
		struct iovec vector = { sleeps || hears ? thread->original_regs : thread->regs, sizeof thread->regs };
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
	early_count = 0;
}

/* ---- injected system calls ---- */

/* By all of its name: a file may be called like that, too. */
static bool is_vdso(const char *line, unsigned long *from, unsigned long *to)
{
	int name_at = 0;
	return sscanf(line, "%lx-%lx %*s %*s %*s %*s %n", from, to, &name_at) == 2 && name_at > 0 && strcmp(line + name_at, "[vdso]\n") == 0;
}

static void find_syscall(struct target *target)
{
	char path[64], *line = NULL;
	size_t room = 0;
	unsigned long from = 0, to = 0;
	bool found = false;
	snprintf(path, sizeof path, "/proc/%d/maps", target->pid);
	FILE *maps = fopen(path, "re");
	while (maps && !found && getline(&line, &room, maps) > 0)
		found = is_vdso(line, &from, &to);
	free(line);
	if (maps)
		fclose(maps);
	if (!found)
		refuse("it has no vdso");
	static uint8_t code[65536];
	size_t bytes = to - from < sizeof code ? to - from : sizeof code;
	struct iovec local = { code, bytes }, remote = { (void *)from, bytes };
	if (process_vm_readv(target->pid, &local, 1, &remote, 1, 0) != (ssize_t)bytes)
		die("cannot read the vdso: %s", strerror(errno));
	for (size_t i = 0; i + 1 < bytes; i++) {
		if (code[i] == 0x0f && code[i + 1] == 0x05) {
			target->vdso = from;
			target->syscall_at = from + i;
			return;
		}
	}
	refuse("its vdso holds no system call instruction");
}

/*
 * Stepping over the instruction costs one stop, its entry and exit two. But a step ends in a SIGTRAP that the kernel forces, and
 * where that is ignored it would be ignored no more.
 */
static bool may_step(struct target *target)
{
	if (target->steps_known)
		return target->steps;
	uint64_t trap = 1ULL << (SIGTRAP - 1);
	target->steps_known = true;
	target->steps = !(read_status(target->pid, target->pid, "SigIgn:", 16, trap) & trap);
	return target->steps;
}

static enum __ptrace_request one_call(struct target *target)
{
	return may_step(target) ? PTRACE_SINGLESTEP : PTRACE_SYSCALL;
}

/* At its entry: whether the kernel has the call that was meant. Otherwise it runs none. */
static void look_at_call(struct target *target, struct thread *thread, const uint64_t meant[27])
{
	static const int arguments[] = { R_RDI, R_RSI, R_RDX, R_R10, R_R8, R_R9 };
	uint64_t regs[27];
	transfer_regs(thread, PTRACE_GETREGSET, regs);
	bool same = regs[R_ORIG_RAX] == meant[R_RAX] && regs[R_RIP] == target->syscall_at + 2;
	for (size_t i = 0; i < sizeof arguments / sizeof *arguments; i++)
		same &= regs[arguments[i]] == meant[arguments[i]];
	if (same)
		return;
	regs[R_ORIG_RAX] = (uint64_t)-1;
	transfer_regs(thread, PTRACE_SETREGSET, regs);
	run(thread->tid, PTRACE_SYSCALL, 0);
	ran(thread, PTRACE_SYSCALL);
	errno = 0;
	die("it ran another system call than the one that was run on its behalf");
}

void start_call(struct target *target, struct thread *thread, long nr, const uint64_t args[6])
{
	if (!target->syscall_at)
		find_syscall(target);
	uint64_t regs[27];
	memcpy(regs, thread->regs, sizeof regs);
	regs[R_RIP] = target->syscall_at;
	regs[R_RAX] = (uint64_t)nr;
	regs[R_RDI] = args[0];
	regs[R_RSI] = args[1];
	regs[R_RDX] = args[2];
	regs[R_R10] = args[3];
	regs[R_R8] = args[4];
	regs[R_R9] = args[5];
	regs[R_ORIG_RAX] = (uint64_t)-1;
	transfer_regs(thread, PTRACE_SETREGSET, regs);
	if (one_call(target) == PTRACE_SYSCALL) { /* its entry */
		run(thread->tid, PTRACE_SYSCALL, 0);
		ran(thread, PTRACE_SYSCALL);
		look_at_call(target, thread, regs);
	}
	run(thread->tid, one_call(target), 0);
}

long finish_call(struct target *target, struct thread *thread)
{
	uint64_t regs[27];
	ran(thread, one_call(target));
	transfer_regs(thread, PTRACE_GETREGSET, regs);
	long result = (long)regs[R_RAX];
	bool done = regs[R_RIP] == target->syscall_at + 2;
	transfer_regs(thread, PTRACE_SETREGSET, thread->regs);
	if (!done)
		die("a system call that was run in the process was interrupted");
	return result;
}

long inject(struct target *target, struct thread *thread, long nr, const uint64_t args[6])
{
	start_call(target, thread, nr, args);
	return finish_call(target, thread);
}

/*
 * Many system calls at the price of one stop: a loop in a page of the process runs them from a table behind it. Each entry
 * takes the number, six arguments, and gets the result.
 */
static const uint8_t script_code[] = {
	0x48, 0x8b, 0x03,       /* loop: mov (%rbx), %rax */
	0x48, 0x8b, 0x7b, 0x08, /* mov 8(%rbx), %rdi */
	0x48, 0x8b, 0x73, 0x10, /* mov 16(%rbx), %rsi */
	0x48, 0x8b, 0x53, 0x18, /* mov 24(%rbx), %rdx */
	0x4c, 0x8b, 0x53, 0x20, /* mov 32(%rbx), %r10 */
	0x4c, 0x8b, 0x43, 0x28, /* mov 40(%rbx), %r8 */
	0x4c, 0x8b, 0x4b, 0x30, /* mov 48(%rbx), %r9 */
	0x0f, 0x05,             /* syscall */
	0x48, 0x89, 0x43, 0x38, /* mov %rax, 56(%rbx) */
	0x48, 0x83, 0xc3, 0x40, /* add $64, %rbx */
	0x49, 0xff, 0xcc,       /* dec %r12 */
	0x75, 0xd6,             /* jnz loop */
	0xcc,                   /* int3 */
};
_Static_assert(sizeof script_code == 3 + 6 * 4 + 2 + 4 + 4 + 3 + 2 + 1 && sizeof script_code <= SCRIPT_TABLE_AT, "script");

/* While a script runs others can write its code and its table. Under the sandbox's filter, which all of its calls pass, that gains them nothing. */
static void suspend_filter(const struct thread *thread, bool suspended)
{
	long options = HOLD_OPTIONS | (suspended ? PTRACE_O_SUSPEND_SECCOMP : 0);
	if (ptrace(PTRACE_SETOPTIONS, thread->tid, NULL, (void *)options) != 0)
		die("cannot put the filter of the process in force: %s", strerror(errno));
}

void run_script(struct target *target, int mem, uint64_t page, struct script_call *calls, size_t count)
{
	size_t bytes = count * sizeof *calls;
	struct thread *thread = &target->threads[0];
	/* Filters of its own, beyond the sandbox's and those of the server, may refuse what a script does, and are suspended: one step after another. */
	if (read_status(target->pid, thread->tid, "Seccomp_filters:", 10, 0) != 1 + read_status(getpid(), getpid(), "Seccomp_filters:", 10, 0)) {
		for (size_t i = 0; i < count; i++)
			calls[i].result = inject(target, thread, (long)calls[i].nr, calls[i].args);
		return;
	}
	if (pwrite(mem, script_code, sizeof script_code, (off_t)page) != sizeof script_code ||
	    pwrite(mem, calls, bytes, (off_t)(page + SCRIPT_TABLE_AT)) != (ssize_t)bytes)
		die("cannot write into the process: %s", strerror(errno));
	uint64_t regs[27];
	memcpy(regs, thread->regs, sizeof regs);
	regs[R_RIP] = page;
	regs[R_RBX] = page + SCRIPT_TABLE_AT;
	regs[R_R12] = count;
	regs[R_ORIG_RAX] = (uint64_t)-1;
	transfer_regs(thread, PTRACE_SETREGSET, regs);
	suspend_filter(thread, false);
	run(thread->tid, PTRACE_CONT, 0);
	ran(thread, PTRACE_CONT);
	suspend_filter(thread, true);
	transfer_regs(thread, PTRACE_GETREGSET, regs);
	if (regs[R_RIP] != page + sizeof script_code)
		die("the process stopped in the middle of system calls that ran on its behalf (at 0x%lx)", (unsigned long)regs[R_RIP]);
	if (pread(mem, calls, bytes, (off_t)(page + SCRIPT_TABLE_AT)) != (ssize_t)bytes)
		die("cannot read from the process: %s", strerror(errno));
	transfer_regs(thread, PTRACE_SETREGSET, thread->regs);
}
