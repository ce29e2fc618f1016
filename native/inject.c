/*
 * Running system calls in a stopped process: one, or a script of them (part of the extractor).
 *
 * While a filter is suspended no instruction may run but those meant. Who is stopped cannot see to that alone: a child process writes
 * into its memory by /proc/PID/mem, and so may a thread that was not stopped. So one call is one step, or is looked at when the kernel
 * has it and before it runs; a script, which runs freely, runs under the filter.
 */
#include "tracee.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

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
