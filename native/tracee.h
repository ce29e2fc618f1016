/* One thread that is held by ptrace(2): its stops, its registers, and the system call in which it was stopped. */
#pragma once
#include "extractor.h"
#include <sys/ptrace.h>

/* tracee.c */
#define HOLD_OPTIONS (PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL)
/* Bounds of waits, in ticks: for all threads to stop, and for one to end what is run on its behalf. */
#define STOP_TICKS_MAX 20
#define CALL_TICKS_MAX 300
void bound_waits(int most);
/* The status of the thread's next stop; ENDED: it is no more. */
#define ENDED (-1)
int wait_stop(pid_t tid);
/* Those that came while another thread was waited for are heard no more. */
void forget_stops(void);
bool is_interrupt(int status);
_Noreturn void killed(void);
void run(pid_t tid, enum __ptrace_request how, int signal);
void ran(struct thread *thread, enum __ptrace_request how);
/* Registers are read and written as a whole. */
void transfer_regs(const struct thread *thread, enum __ptrace_request how, uint64_t regs[27]);

/* interrupted.c */
/* Has `regs`, where the thread was stopped in a system call, begin it anew or end it as an image needs it. */
void make_restartable(struct thread *thread);
bool waited_for_ever(const uint64_t regs[27]);
/* Whether the kernel has noted how long one that sleeps has still to sleep, and goes on with that. Only an image cannot. */
bool sleeps_on(const uint64_t regs[27]);
