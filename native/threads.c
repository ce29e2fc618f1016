/*
 * What only its threads know of a stopped process: registers, extended state, numbers, areas that the kernel keeps for each (part of the extractor).
 */
#include "extractor.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
#define XSTATE_BYTES_MAX 32768

/* The sandbox's own filter is in force in every husk. Others cannot be read by number, and a clone without them could do more. */
static void refuse_filters(const struct target *target, const struct thread *thread)
{
	if (read_status(target->pid, thread->tid, "Seccomp_filters:", 10, 0) > 1)
		refuse("it installed a seccomp filter of its own");
}

void read_rseq(struct thread *thread)
{
	struct {
		uint64_t address;
		uint32_t bytes, signature, flags, pad;
	} rseq = { 0 };
	if (ptrace((enum __ptrace_request)PTRACE_GET_RSEQ_CONFIGURATION, thread->tid, (void *)sizeof rseq, &rseq) < 0)
		die("cannot read the rseq area: %s", strerror(errno));
	thread->rseq = rseq.address;
	thread->rseq_bytes = rseq.bytes;
	thread->rseq_signature = rseq.signature;
}

static void read_thread(struct target *target, struct thread *thread)
{
	thread->xstate = malloc(XSTATE_BYTES_MAX);
	struct iovec vector = { thread->xstate, XSTATE_BYTES_MAX };
	if (!thread->xstate || ptrace(PTRACE_GETREGSET, thread->tid, (void *)NT_X86_XSTATE, &vector) != 0)
		die("cannot read extended state: %s", strerror(errno));
	thread->xstate_bytes = vector.iov_len;
	read_rseq(thread);
	if (syscall(SYS_get_robust_list, thread->tid, &thread->robust_list, &thread->robust_bytes) != 0)
		die("cannot read a robust list: %s", strerror(errno));

	char path[64];
	snprintf(path, sizeof path, "/proc/%d/task/%d/comm", target->pid, thread->tid);
	FILE *comm = fopen(path, "re");
	if (!comm || !fgets(thread->name, sizeof thread->name, comm))
		die("cannot read a thread's name: %s", strerror(errno));
	fclose(comm);
	thread->name[strcspn(thread->name, "\n")] = 0;
	refuse_filters(target, thread);
}

int inner_tid(pid_t pid, pid_t thread)
{
	char path[64], line[256];
	int tid = -1;
	snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, thread);
	FILE *status = fopen(path, "re");
	while (status && tid < 0 && fgets(line, sizeof line, status))
		if (strncmp(line, "NSpid:", 6) == 0)
			tid = atoi(strrchr(line, '\t') + 1);
	if (status)
		fclose(status);
	return tid;
}

/*
 * Where the C library keeps the number of a thread: the main one's is another one in each clone. In glibc a field of the thread's descriptor, which up to 2.42
 * is also what the kernel clears at its end; since 2.43 that is another one, with states of its own. 0: nowhere that is known.
 */
static uint64_t find_tid_word(int mem, const struct thread *thread)
{
	const uint64_t descriptor = thread->regs[R_FS_BASE];
	const uint64_t places[] = { descriptor + 0x2d0 /* glibc */, thread->tid_address, descriptor + 0x30 /* musl */ };
	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		int word;
		if (pread(mem, &word, sizeof word, (off_t)places[i]) == sizeof word && word == thread->number)
			return places[i];
	}
	return 0;
}

/*
 * Whether it waits without a time limit for events, or for a futex that nobody has changed yet: who changed it may not have come to wake it, and a clone's
 * thread would not wait again, but go on.
 */
static bool sleeps(int mem, const struct thread *thread)
{
	const uint64_t *regs = thread->regs;
	if (!thread->restarts)
		return false;
	if (regs[R_RAX] == SYS_epoll_wait || regs[R_RAX] == SYS_epoll_pwait)
		return (int32_t)regs[R_R10] < 0;
	uint64_t how = regs[R_RSI] & ~(uint64_t)(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME);
	if (regs[R_RAX] != SYS_futex || regs[R_R10] != 0 || (how != FUTEX_WAIT && how != FUTEX_WAIT_BITSET))
		return false;
	uint32_t word;
	return pread(mem, &word, sizeof word, (off_t)regs[R_RDI]) == sizeof word && word == (uint32_t)regs[R_RDX];
}

/* Asks as many threads at once, each of which answers at a place of its own below the main thread's stack. */
#define ASKED_AT_ONCE 64
#define ANSWER_WORDS 4

static void ask_threads(struct target *target, int mem, int first, int count)
{
	uint64_t saved[ASKED_AT_ONCE * ANSWER_WORDS], answers[ASKED_AT_ONCE * ANSWER_WORDS];
	size_t bytes = (size_t)count * ANSWER_WORDS * sizeof *saved;
	uint64_t scratch = (target->threads[0].regs[R_RSP] - 4096 - bytes) & ~15ULL;
	struct thread *threads = &target->threads[first];
	if (pread(mem, saved, bytes, (off_t)scratch) != (ssize_t)bytes)
		die("cannot read the stack of the process: %s", strerror(errno));
	for (int question = 0; question < 2; question++) {
		long failed = 0;
		for (int i = 0; i < count; i++) {
			uint64_t at = scratch + (uint64_t)i * ANSWER_WORDS * sizeof *saved;
			if (question == 0)
				start_call(target, &threads[i], SYS_prctl, (uint64_t[6]){ 40 /* PR_GET_TID_ADDRESS */, at, 0, 0, 0, 0 });
			else
				start_call(target, &threads[i], SYS_sigaltstack, (uint64_t[6]){ 0, at, 0, 0, 0, 0 });
		}
		for (int i = 0; i < count; i++) {
			long result = finish_call(target, &threads[i]);
			failed = result < 0 ? result : failed;
		}
		if (failed == 0 && pread(mem, answers, bytes, (off_t)scratch) != (ssize_t)bytes)
			failed = -errno;
		if (failed < 0 && question == 0)
			die("cannot read a thread's id address: %s (a kernel without CONFIG_CHECKPOINT_RESTORE?)", strerror((int)-failed));
		if (failed < 0)
			die("cannot read a signal stack: %s", strerror((int)-failed));
		for (int i = 0; i < count; i++) {
			if (question == 0)
				threads[i].tid_address = answers[i * ANSWER_WORDS];
			else
				memcpy(threads[i].altstack, &answers[i * ANSWER_WORDS], sizeof threads[i].altstack);
		}
	}
	if (pwrite(mem, saved, bytes, (off_t)scratch) != (ssize_t)bytes)
		die("cannot put back the stack of the process: %s", strerror(errno));
}

void read_threads(struct target *target)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/mem", target->pid);
	int mem = open(path, O_RDWR | O_CLOEXEC);
	if (mem < 0)
		die("cannot open the memory of the process: %s", strerror(errno));
	for (int i = 0; i < target->thread_count; i++)
		read_thread(target, &target->threads[i]);
	for (int i = 0; i < target->thread_count; i += ASKED_AT_ONCE)
		ask_threads(target, mem, i, target->thread_count - i < ASKED_AT_ONCE ? target->thread_count - i : ASKED_AT_ONCE);
	for (int i = 0; i < target->thread_count; i++) {
		struct thread *thread = &target->threads[i];
		thread->number = inner_tid(target->pid, thread->tid);
		if (thread->number < 0)
			die("cannot read a thread's number: %s", strerror(errno));
		thread->tid_word = find_tid_word(mem, thread);
		thread->sleeps = sleeps(mem, thread);
	}
	close(mem);
}

void write_threads(const struct target *target)
{
	json_open("threads", '[');
	for (int i = 0; i < target->thread_count; i++) {
		const struct thread *thread = &target->threads[i];
		json_open(NULL, '{');
		json_int("number", thread->number);
		json_string("name", thread->name);
		json_bool("sleeps", thread->sleeps);
		json_bytes("regs", thread->regs, sizeof thread->regs);
		json_bytes("xstate", thread->xstate, thread->xstate_bytes);
		json_hex("sigmask", thread->sigmask);
		json_open("altstack", '[');
		for (int j = 0; j < 3; j++)
			json_hex(NULL, thread->altstack[j]);
		json_close(']');
		json_hex("robustList", thread->robust_list);
		json_hex("robustBytes", thread->robust_bytes);
		json_hex("rseq", thread->rseq);
		json_int("rseqBytes", (int64_t)thread->rseq_bytes);
		json_int("rseqSignature", (int64_t)thread->rseq_signature);
		json_hex("tidAddress", thread->tid_address);
		json_hex("tidWord", thread->tid_word);
		write_scheduling(target, thread);
		json_close('}');
	}
	json_close(']');
}
