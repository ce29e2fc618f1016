/*
 * Facts about a stopped process as a whole: clocks, addresses, signals, timers, limits, its place, who else is in its sandbox, and the
 * shape of a signal frame on this machine (part of the extractor).
 */
#include "extractor.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

char *read_stat(pid_t pid, pid_t tid, char *text, size_t room)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, room - 1);
	if (fd >= 0)
		close(fd);
	text[got < 0 ? 0 : got] = 0;
	char *end = strrchr(text, ')');
	return end ? end + 1 : NULL;
}

pid_t parent_process(pid_t pid)
{
	char text[2048];
	pid_t parent = 0;
	const char *state = read_stat(pid, pid, text, sizeof text);
	if (state)
		sscanf(state, " %*c %d", &parent);
	return parent;
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

/* What a time namespace adds to the clocks: those of the process, which may have been thawed into one, less our own. */
static void add_clock_offsets(const char *path, int64_t sign, uint64_t *monotonic, uint64_t *boottime)
{
	char name[16];
	long long seconds, nanoseconds;
	FILE *file = fopen(path, "re");
	if (!file)
		return; /* a kernel without CONFIG_TIME_NS */
	while (fscanf(file, "%15s %lld %lld", name, &seconds, &nanoseconds) == 3) {
		uint64_t offset = (uint64_t)(sign * (seconds * 1000000000LL + nanoseconds));
		*(strcmp(name, "monotonic") == 0 ? monotonic : boottime) += offset;
	}
	fclose(file);
}

void write_clocks(const struct target *target)
{
	char path[64];
	uint64_t monotonic = clock_ns(CLOCK_MONOTONIC), boottime = clock_ns(CLOCK_BOOTTIME);
	snprintf(path, sizeof path, "/proc/%d/timens_offsets", target->pid);
	add_clock_offsets(path, 1, &monotonic, &boottime);
	add_clock_offsets("/proc/self/timens_offsets", -1, &monotonic, &boottime);
	json_open("clock", '{');
	json_hex("monotonicNs", monotonic);
	json_hex("boottimeNs", boottime);
	json_hex("realtimeNs", clock_ns(CLOCK_REALTIME));
	json_close('}');
}

/* Addresses that prctl(PR_SET_MM_MAP) sets again; brk itself is asked of the process. */
void write_mm(struct target *target)
{
	char text[2048];
	char *at = read_stat(target->pid, target->pid, text, sizeof text);
	if (!at)
		die("cannot read the state of process %d: %s", target->pid, strerror(errno));
	uint64_t field[53] = { 0 };
	int index = 2;
	for (char *word = strtok(at, " "); word && index < 52; word = strtok(NULL, " "))
		field[++index] = strtoull(word, NULL, 10);
	json_open("mm", '{');
	json_hex("startCode", field[26]);
	json_hex("endCode", field[27]);
	json_hex("startStack", field[28]);
	json_hex("startData", field[45]);
	json_hex("endData", field[46]);
	json_hex("startBrk", field[47]);
	json_hex("argStart", field[48]);
	json_hex("argEnd", field[49]);
	json_hex("envStart", field[50]);
	json_hex("envEnd", field[51]);
	json_hex("brk", (uint64_t)inject(target, &target->threads[0], SYS_brk, (uint64_t[6]){ 0 }));
	json_close('}');
}

#define MEMBARRIER_GET_REGISTRATIONS 512

/* Behind the end of a line: the name of the process, which comes first, may read like any of them. */
static uint64_t status_number(const char *status, const char *name, int base)
{
	char start[32];
	int length = snprintf(start, sizeof start, "\n%s:", name);
	const char *at = strstr(status, start);
	return at ? strtoull(at + length, NULL, base) : 0;
}

/* One that is blocked may stay so; any other came in this moment, and is heard as soon as the process goes on. */
static void refuse_pending(uint64_t pending, uint64_t blocked, const char *where)
{
	for (int signal = 1; signal <= 64; signal++) {
		if (!(pending & (1ULL << (signal - 1))))
			continue;
		const char *name = sigabbrev_np(signal);
		if (blocked & (1ULL << (signal - 1)))
			refuse("signal %d (%s%s) is pending%s", signal, name ? "SIG" : "", name ? name : "real-time", where);
		put_off("signal %d (%s%s) came at that moment%s", signal, name ? "SIG" : "", name ? name : "real-time", where);
	}
}

static void read_text(const char *path, char *text, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, room - 1);
	if (got <= 0)
		die("cannot read %s: %s", path, strerror(errno));
	close(fd);
	text[got] = 0;
}

/* `status`: of the process, in which stands what was sent to it as a whole. */
static void refuse_pending_signals(const struct target *target, const char *status)
{
	char path[64], own[4096];
	uint64_t blocked_by_all = ~0ULL;
	for (int i = 0; i < target->thread_count; i++)
		blocked_by_all &= target->threads[i].sigmask;
	refuse_pending(status_number(status, "ShdPnd", 16), blocked_by_all, "");
	for (int i = 0; i < target->thread_count; i++) {
		snprintf(path, sizeof path, "/proc/%d/task/%d/status", target->pid, target->threads[i].tid);
		read_text(path, own, sizeof own);
		refuse_pending(status_number(own, "SigPnd", 16), target->threads[i].sigmask, i == 0 ? "" : " in one of its threads");
	}
}

/* Of a system call that writes four words to `scratch` in the process. */
static void ask(struct target *target, int mem, long nr, const uint64_t args[6], uint64_t scratch, uint64_t answer[4], const char *what, int which)
{
	long result = inject(target, &target->threads[0], nr, args);
	if (result < 0)
		errno = (int)-result;
	if (result < 0 || pread(mem, answer, 4 * sizeof *answer, (off_t)scratch) != 4 * sizeof *answer)
		die("cannot read %s %d: %s", what, which, strerror(errno));
}

/* Of signals that are caught or ignored. */
static void write_sigactions(struct target *target, int mem, uint64_t scratch, uint64_t wanted)
{
	json_open("sigactions", '[');
	for (int signal = 1; signal <= 64; signal++) {
		if (!(wanted & (1ULL << (signal - 1))) || signal == SIGKILL || signal == SIGSTOP)
			continue;
		uint64_t answer[4];
		ask(target, mem, SYS_rt_sigaction, (uint64_t[6]){ (uint64_t)signal, 0, scratch, 8, 0, 0 }, scratch, answer, "the action of signal", signal);
		json_open(NULL, '{');
		json_int("signal", signal);
		json_hex("handler", answer[0]);
		json_hex("flags", answer[1]);
		json_hex("restorer", answer[2]);
		json_hex("mask", answer[3]);
		json_close('}');
	}
	json_close(']');
}

static void write_itimers(struct target *target, int mem, uint64_t scratch)
{
	json_open("itimers", '[');
	for (int which = 0; which < 3; which++) {
		uint64_t answer[4];
		ask(target, mem, SYS_getitimer, (uint64_t[6]){ (uint64_t)which, scratch, 0, 0, 0, 0 }, scratch, answer, "interval timer", which);
		json_open(NULL, '[');
		for (int i = 0; i < 4; i++)
			json_int(NULL, (int64_t)answer[i]);
		json_close(']');
	}
	json_close(']');
}

static void refuse_posix_timers(const struct target *target)
{
	char path[64], first;
	snprintf(path, sizeof path, "/proc/%d/timers", target->pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? 0 : read(fd, &first, 1);
	if (fd >= 0)
		close(fd);
	if (got > 0)
		refuse("it holds a POSIX timer (timer_create)");
}

/*
 * Signal dispositions live in the kernel only; the process itself is asked. The answers go below the main thread's stack, which is
 * put back.
 */
void write_signals(struct target *target)
{
	char path[64], status[4096];
	snprintf(path, sizeof path, "/proc/%d/status", target->pid);
	read_text(path, status, sizeof status);
	refuse_pending_signals(target, status);
	json_int("umask", (int64_t)status_number(status, "Umask", 8));
	long registered = inject(target, &target->threads[0], SYS_membarrier, (uint64_t[6]){ MEMBARRIER_GET_REGISTRATIONS });
	json_int("membarrier", registered > 0 ? registered : 0); /* EINVAL before Linux 6.3 */

	uint64_t scratch = (target->threads[0].regs[R_RSP] - 4096) & ~15ULL; /* well below the red zone */
	uint64_t saved[4];
	snprintf(path, sizeof path, "/proc/%d/mem", target->pid);
	int mem = open(path, O_RDWR | O_CLOEXEC);
	if (mem < 0 || pread(mem, saved, sizeof saved, (off_t)scratch) != sizeof saved)
		die("cannot read the stack of the process: %s", strerror(errno));
	write_sigactions(target, mem, scratch, status_number(status, "SigCgt", 16) | status_number(status, "SigIgn", 16));
	write_itimers(target, mem, scratch);
	if (pwrite(mem, saved, sizeof saved, (off_t)scratch) != sizeof saved)
		die("cannot put back the stack of the process: %s", strerror(errno));
	close(mem);
	refuse_posix_timers(target);
}

void write_limits_and_place(const struct target *target)
{
	char path[64], cwd[4096], line[256], soft[32], hard[32];
	/* One line for each resource, in the order of their numbers. prlimit(2) on another user's process wants CAP_SYS_RESOURCE. */
	snprintf(path, sizeof path, "/proc/%d/limits", target->pid);
	FILE *limits = fopen(path, "re");
	if (!limits || !fgets(line, sizeof line, limits))
		die("cannot read %s: %s", path, strerror(errno));
	json_open("rlimits", '[');
	for (int resource = 0; resource < 16; resource++) {
		if (!fgets(line, sizeof line, limits) || sscanf(line, "%*25c %31s %31s", soft, hard) != 2)
			die("cannot read resource limit %d", resource);
		json_open(NULL, '[');
		json_hex(NULL, soft[0] == 'u' ? UINT64_MAX : strtoull(soft, NULL, 10));
		json_hex(NULL, hard[0] == 'u' ? UINT64_MAX : strtoull(hard, NULL, 10));
		json_close(']');
	}
	json_close(']');
	fclose(limits);
	snprintf(path, sizeof path, "/proc/%d/cwd", target->pid);
	ssize_t got = readlink(path, cwd, sizeof cwd - 1);
	if (got < 0)
		die("cannot read the working directory: %s", strerror(errno));
	cwd[got] = 0;
	struct stat is;
	if (stat(path, &is) == 0 && is.st_nlink == 0)
		refuse("its working directory was removed (%s)", cwd);
	const char *lasting = lasting_path(target->pid, cwd);
	if (!lasting)
		refuse("its working directory is a thread's (%s)", cwd);
	json_path("cwd", lasting);
}

/* Another process in the sandbox cannot be part of the image: name it. */
void refuse_company(const struct target *target)
{
	char path[64], text[2048];
	pid_t parent = parent_process(target->pid);
	pid_t owners[THREADS_MAX + 1];
	int owner_count = 0;
	for (int i = 0; i < target->thread_count; i++)
		owners[owner_count++] = target->threads[i].tid;
	owners[owner_count++] = parent;
	for (int i = 0; i < owner_count; i++) {
		pid_t group = i == owner_count - 1 ? parent : target->pid;
		snprintf(path, sizeof path, "/proc/%d/task/%d/children", group, owners[i]);
		FILE *list = fopen(path, "re");
		if (!list)
			die("cannot read %s: %s (a kernel without CONFIG_PROC_CHILDREN?)", path, strerror(errno));
		int child;
		while (fscanf(list, "%d", &child) == 1) {
			if (child == target->pid)
				continue;
			char name[32] = "?";
			snprintf(path, sizeof path, "/proc/%d/comm", child);
			FILE *comm = fopen(path, "re");
			if (comm) {
				if (fgets(name, sizeof name, comm))
					name[strcspn(name, "\n")] = 0;
				fclose(comm);
			}
			fclose(list);
			const char *state = read_stat(child, child, text, sizeof text);
			if (state && state[1] == 'Z')
				refuse("it has a child process that ended and was not waited for (%s)", name);
			refuse("it has a live child process (%s)", name);
		}
		fclose(list);
	}
}

/* ---- xstate: what the kernel itself puts into a signal frame says how large a frame may be here ---- */

static volatile uint32_t frame_magic, frame_extended, frame_bytes;
static volatile uint64_t frame_features;

static void look_at_frame(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)info;
	const ucontext_t *uc = context;
	const uint8_t *reserved = (const uint8_t *)uc->uc_mcontext.fpregs + 464;
	frame_magic = *(const uint32_t *)reserved;
	frame_extended = *(const uint32_t *)(reserved + 4);
	frame_features = *(const uint64_t *)(reserved + 8);
	frame_bytes = *(const uint32_t *)(reserved + 16);
}

void write_frame_shape(void)
{
	struct sigaction action = { .sa_sigaction = look_at_frame, .sa_flags = SA_SIGINFO };
	sigaction(SIGUSR1, &action, NULL);
	raise(SIGUSR1);
	if (frame_magic != 0x46505853)
		die("the kernel's signal frame has no extended state");
	json_open("frame", '{');
	json_int("extendedBytes", frame_extended);
	json_int("stateBytes", frame_bytes);
	json_hex("features", frame_features);
	json_close('}');
}
