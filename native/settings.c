/*
 * What programs set for a process or a thread by plain calls, which set it again in a clone (part of the extractor): prctl(2), how and on which processors
 * threads are scheduled. Told where it is not as a function finds it.
 */
#include "extractor.h"
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif

/* Not PR_SET_THP_DISABLE: a recording has it set for its instance (src/image/compile-recording.ts). */
static const struct {
	int get, set, usual;
} settings[] = {
	{ PR_GET_TIMERSLACK, PR_SET_TIMERSLACK, 50000 },
	{ PR_GET_DUMPABLE, PR_SET_DUMPABLE, 1 },
	{ PR_GET_KEEPCAPS, PR_SET_KEEPCAPS, 0 },
	{ PR_GET_MDWE, PR_SET_MDWE, 0 },
};

/* An older kernel does not know all of them. */
void write_settings(struct target *target)
{
	json_open("settings", '[');
	for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
		long value = inject(target, &target->threads[0], SYS_prctl, (uint64_t[6]){ (uint64_t)settings[i].get });
		if (value < 0 || value == settings[i].usual)
			continue;
		json_open(NULL, '[');
		json_int(NULL, settings[i].set);
		json_int(NULL, value);
		json_close(']');
	}
	json_close(']');
}

struct scheduling {
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period; /* of policies that need a privilege; else what the kernel chose */
	} how; /* struct sched_attr, as it was at first */
	cpu_set_t where;
};
_Static_assert(sizeof(((struct scheduling *)0)->how) == 48, "struct sched_attr");

static struct scheduling scheduling_of(pid_t tid)
{
	struct scheduling is;
	memset(&is, 0, sizeof is);
	if (syscall(SYS_sched_getattr, tid, &is.how, sizeof is.how, 0) != 0 || sched_getaffinity(tid, sizeof is.where, &is.where) != 0)
		die("cannot tell how a thread is scheduled: %s", strerror(errno));
	is.how.runtime = is.how.deadline = is.how.period = 0;
	return is;
}

/* A function's process is begun by the init of its sandbox, and is scheduled as that one is. */
void write_scheduling(const struct target *target, const struct thread *thread)
{
	static struct scheduling usual;
	static bool known;
	if (!known)
		usual = scheduling_of(parent_process(target->pid));
	known = true;
	struct scheduling is = scheduling_of(thread->tid);
	if (memcmp(&is.how, &usual.how, sizeof is.how) != 0)
		json_bytes("scheduled", (const uint8_t *)&is.how, sizeof is.how);
	if (!CPU_EQUAL(&is.where, &usual.where))
		json_bytes("processors", (const uint8_t *)&is.where, sizeof is.where);
}
