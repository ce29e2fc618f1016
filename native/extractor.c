/*
 * extractor: turns a parked process into facts and pages.
 *
 *   extractor freeze PID DIRECTORY CONTROL_FD [image=PAGES] [base=PAGES [layout=LAYOUT]] [swap=FD] [live=SOCKET]
 *                                                             writes DIRECTORY/pages, DIRECTORY/tmp, DIRECTORY/facts.json
 *   extractor verify PAGES                                    prints the digest of a page space (store.c)
 *   extractor deflate PID CONTROL_FD [kept=…] [unused=…]… 3<>SWAP   moves the memory of a process to a file (deflate.c)
 *   extractor tracking                                        says whether this kernel can tell exactly what a process touches
 *   extractor watch PID CONTROL_FD 3<SWAP                     tells what a wake touches (watch.c)
 *   extractor scan PID [PAGES [BASE_PAGES]]                   prints the present pages of a process by source (present.c)
 *   extractor resident|evict|fetch FILE…, bandwidth FILE     the page cache (cache.c)
 *   extractor gather FILE, pack FILE                          moves a file's parts together in the page cache, on the disk (gather.c, pack.c)
 *   extractor blocked PID                                     time spent waiting for the disk (blocked.c)
 *
 * Theory of operation. It decides nothing about the image: it reports what is, and TypeScript compiles that
 * (src/image). While the process is stopped it only copies, into memory that was faulted in before; files are
 * written after the process goes on.
 *
 *   stage       when                          what it does
 *   prepare     process running               buffer of the size of its anonymous memory, faulted in
 *   stop        main thread parked in read    seize all threads (ptrace), suspend seccomp
 *   read        stopped                       registers, signals, mappings, descriptors, /tmp, pages → buffer
 *   release     end of the stop               registers restored, threads detached
 *   store       process running again         pages → sparse page space, zero pages left out, digest, fsync
 *
 * Whatever cannot be frozen is refused with its name before anything of the process was changed. The last line on
 * stdout is one JSON object: {"ok":true,…} or {"ok":false,"code":"refused"|"failed","why":…}.
 */
#include "ahead.h"
#include "track.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

FILE *facts;
static struct target target;
static bool need_comma, halfway;
static char notes[64][256];
static int note_count;

uint64_t clock_ns(int clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

/* ---- JSON ---- */

/* Bytes of the UTF-8 character at `at`; 0 when there is none. */
static size_t character_bytes(const unsigned char *at)
{
	size_t count = *at < 0x80 ? 1 : *at < 0xc2 ? 0 : *at < 0xe0 ? 2 : *at < 0xf0 ? 3 : *at < 0xf5 ? 4 : 0;
	for (size_t i = 1; i < count; i++)
		if ((at[i] & 0xc0) != 0x80)
			return 0;
	/* overlong forms, surrogates, beyond U+10FFFF */
	if ((*at == 0xe0 && at[1] < 0xa0) || (*at == 0xed && at[1] > 0x9f) || (*at == 0xf0 && at[1] < 0x90) || (*at == 0xf4 && at[1] > 0x8f))
		return 0;
	return count;
}

void json_text(FILE *out, const char *text)
{
	fputc('"', out);
	for (const unsigned char *at = (const unsigned char *)text; *at;) {
		size_t count = character_bytes(at);
		if (count == 0)
			fputs("\\ufffd", out);
		else if (*at == '"' || *at == '\\')
			fprintf(out, "\\%c", *at);
		else if (*at < 0x20 || *at == 0x7f)
			fprintf(out, "\\u%04x", *at);
		else
			fwrite(at, 1, count, out);
		at += count ? count : 1;
	}
	fputc('"', out);
}

static void json_key(const char *key)
{
	if (need_comma)
		fputc(',', facts);
	need_comma = true;
	if (key) {
		json_text(facts, key);
		fputc(':', facts);
	}
}

void json_open(const char *key, char bracket)
{
	json_key(key);
	fputc(bracket, facts);
	need_comma = false;
}

void json_close(char bracket)
{
	fputc(bracket, facts);
	need_comma = true;
}

void json_string(const char *key, const char *value)
{
	json_key(key);
	json_text(facts, value);
}

void json_path(const char *key, const char *path)
{
	for (const unsigned char *at = (const unsigned char *)path; *at; at += character_bytes(at))
		if (character_bytes(at) == 0)
			refuse("the name of a file is not UTF-8 (%s)", path);
	json_string(key, path);
}

void json_bytes(const char *key, const void *bytes, size_t count)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *at = bytes;
	char text[512];
	json_key(key);
	fputc('"', facts);
	while (count > 0) {
		size_t part = count < sizeof text / 2 ? count : sizeof text / 2;
		for (size_t i = 0; i < part; i++) {
			text[2 * i] = digits[at[i] >> 4];
			text[2 * i + 1] = digits[at[i] & 15];
		}
		fwrite(text, 1, 2 * part, facts);
		at += part;
		count -= part;
	}
	fputc('"', facts);
}

void json_hex(const char *key, uint64_t value)
{
	json_key(key);
	fprintf(facts, "\"0x%" PRIx64 "\"", value);
}

void json_int(const char *key, int64_t value)
{
	json_key(key);
	fprintf(facts, "%" PRId64, value);
}

void json_bool(const char *key, bool value)
{
	json_key(key);
	fputs(value ? "true" : "false", facts);
}

/* ---- refusals ---- */

static _Noreturn void end_with(const char *code, bool of_instance, const char *format, va_list args)
{
	char text[1024];
	vsnprintf(text, sizeof text, format, args);
	if (halfway)
		kill(target.pid, SIGKILL);
	release_all(&target);
	printf("{\"ok\":false,\"code\":\"%s\",%s\"why\":", halfway ? "ended" : code, of_instance ? "\"scope\":\"instance\"," : "");
	json_text(stdout, text);
	printf("}\n");
	fflush(stdout);
	exit(1);
}

void no_way_back(bool on)
{
	halfway = on;
}

void refuse(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	end_with("refused", false, format, args);
}

void put_off(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	end_with("busy", false, format, args);
}

void refuse_instance(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	end_with("refused", true, format, args);
}

void die(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	end_with(errno == ENOSPC || errno == EDQUOT || errno == ENOMEM ? "exhausted" : "failed", false, format, args);
}

void note(const char *format, ...)
{
	if (note_count == (int)(sizeof notes / sizeof notes[0]))
		return;
	va_list args;
	va_start(args, format);
	vsnprintf(notes[note_count++], sizeof notes[0], format, args);
	va_end(args);
}

/* ---- facts about the process as a whole ---- */

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

static void write_clocks(void)
{
	char path[64];
	uint64_t monotonic = clock_ns(CLOCK_MONOTONIC), boottime = clock_ns(CLOCK_BOOTTIME);
	snprintf(path, sizeof path, "/proc/%d/timens_offsets", target.pid);
	add_clock_offsets(path, 1, &monotonic, &boottime);
	add_clock_offsets("/proc/self/timens_offsets", -1, &monotonic, &boottime);
	json_open("clock", '{');
	json_hex("monotonicNs", monotonic);
	json_hex("boottimeNs", boottime);
	json_hex("realtimeNs", clock_ns(CLOCK_REALTIME));
	json_close('}');
}

/* Addresses that prctl(PR_SET_MM_MAP) sets again; brk itself is asked of the process. */
static void write_mm(void)
{
	char text[2048];
	char *at = read_stat(target.pid, target.pid, text, sizeof text);
	if (!at)
		die("cannot read the state of process %d: %s", target.pid, strerror(errno));
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
	json_hex("brk", (uint64_t)inject(&target, &target.threads[0], 12 /* brk */, (uint64_t[6]){ 0 }));
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

/*
 * Signal dispositions live in the kernel only; the process itself is asked (rt_sigaction), but only for
 * signals that are caught or ignored. The answer goes below the main thread's stack, which is put back.
 */
static void write_signals(void)
{
	char path[64], text[4096];
	snprintf(path, sizeof path, "/proc/%d/status", target.pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (got <= 0)
		die("cannot read %s: %s", path, strerror(errno));
	close(fd);
	text[got] = 0;
	uint64_t blocked_by_all = ~0ULL;
	for (int i = 0; i < target.thread_count; i++)
		blocked_by_all &= target.threads[i].sigmask;
	refuse_pending(status_number(text, "ShdPnd", 16), blocked_by_all, "");
	for (int i = 0; i < target.thread_count; i++) {
		char task[64], own[4096];
		snprintf(task, sizeof task, "/proc/%d/task/%d/status", target.pid, target.threads[i].tid);
		fd = open(task, O_RDONLY | O_CLOEXEC);
		got = fd < 0 ? -1 : read(fd, own, sizeof own - 1);
		if (got <= 0)
			die("cannot read %s: %s", task, strerror(errno));
		close(fd);
		own[got] = 0;
		refuse_pending(status_number(own, "SigPnd", 16), target.threads[i].sigmask, i == 0 ? "" : " in one of its threads");
	}
	uint64_t wanted = status_number(text, "SigCgt", 16) | status_number(text, "SigIgn", 16);
	json_int("umask", (int64_t)status_number(text, "Umask", 8));
	long registered = inject(&target, &target.threads[0], 324 /* membarrier */, (uint64_t[6]){ MEMBARRIER_GET_REGISTRATIONS });
	json_int("membarrier", registered > 0 ? registered : 0); /* EINVAL before Linux 6.3 */

	uint64_t scratch = (target.threads[0].regs[R_RSP] - 4096) & ~15ULL; /* well below the red zone */
	uint64_t saved[4], answer[4];
	snprintf(path, sizeof path, "/proc/%d/mem", target.pid);
	int mem = open(path, O_RDWR | O_CLOEXEC);
	if (mem < 0 || pread(mem, saved, sizeof saved, (off_t)scratch) != sizeof saved)
		die("cannot read the stack of the process: %s", strerror(errno));
	json_open("sigactions", '[');
	for (int signal = 1; signal <= 64; signal++) {
		if (!(wanted & (1ULL << (signal - 1))) || signal == SIGKILL || signal == SIGSTOP)
			continue;
		long result = inject(&target, &target.threads[0], 13 /* rt_sigaction */,
				     (uint64_t[6]){ (uint64_t)signal, 0, scratch, 8, 0, 0 });
		if (result < 0 || pread(mem, answer, sizeof answer, (off_t)scratch) != sizeof answer)
			die("cannot read the action of signal %d: %s", signal, strerror((int)-result));
		json_open(NULL, '{');
		json_int("signal", signal);
		json_hex("handler", answer[0]);
		json_hex("flags", answer[1]);
		json_hex("restorer", answer[2]);
		json_hex("mask", answer[3]);
		json_close('}');
	}
	json_close(']');
	json_open("itimers", '[');
	for (int which = 0; which < 3; which++) {
		long result = inject(&target, &target.threads[0], 36 /* getitimer */,
				     (uint64_t[6]){ (uint64_t)which, scratch, 0, 0, 0, 0 });
		if (result < 0 || pread(mem, answer, sizeof answer, (off_t)scratch) != sizeof answer)
			die("cannot read interval timer %d: %s", which, strerror((int)-result));
		json_open(NULL, '[');
		for (int i = 0; i < 4; i++)
			json_int(NULL, (int64_t)answer[i]);
		json_close(']');
	}
	json_close(']');
	if (pwrite(mem, saved, sizeof saved, (off_t)scratch) != sizeof saved)
		die("cannot put back the stack of the process: %s", strerror(errno));
	close(mem);

	snprintf(path, sizeof path, "/proc/%d/timers", target.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	got = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	if (got > 0)
		refuse("it holds a POSIX timer (timer_create)");
}

static void write_limits_and_place(void)
{
	char path[64], cwd[4096], line[256], soft[32], hard[32];
	/* One line for each resource, in the order of their numbers. prlimit(2) on another user's process wants CAP_SYS_RESOURCE. */
	snprintf(path, sizeof path, "/proc/%d/limits", target.pid);
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
	snprintf(path, sizeof path, "/proc/%d/cwd", target.pid);
	ssize_t got = readlink(path, cwd, sizeof cwd - 1);
	if (got < 0)
		die("cannot read the working directory: %s", strerror(errno));
	cwd[got] = 0;
	struct stat is;
	if (stat(path, &is) == 0 && is.st_nlink == 0)
		refuse("its working directory was removed (%s)", cwd);
	const char *lasting = lasting_path(target.pid, cwd);
	if (!lasting)
		refuse("its working directory is a thread's (%s)", cwd);
	json_path("cwd", lasting);
}

/* Another process in the sandbox cannot be part of the image: name it. */
static void refuse_company(void)
{
	char path[64], text[2048];
	pid_t parent = 0;
	const char *state = read_stat(target.pid, target.pid, text, sizeof text);
	if (state)
		sscanf(state, " %*c %d", &parent);
	pid_t owners[THREADS_MAX + 1];
	int owner_count = 0;
	for (int i = 0; i < target.thread_count; i++)
		owners[owner_count++] = target.threads[i].tid;
	owners[owner_count++] = parent;
	for (int i = 0; i < owner_count; i++) {
		pid_t group = i == owner_count - 1 ? parent : target.pid;
		snprintf(path, sizeof path, "/proc/%d/task/%d/children", group, owners[i]);
		FILE *list = fopen(path, "re");
		if (!list)
			die("cannot read %s: %s (a kernel without CONFIG_PROC_CHILDREN?)", path, strerror(errno));
		int child;
		while (fscanf(list, "%d", &child) == 1) {
			if (child == target.pid)
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
			state = read_stat(child, child, text, sizeof text);
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

static void write_frame_shape(void)
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

/* Words `name=value`, in any order: what the process may have mapped as its memory, and who is told when. */
static struct sources read_sources(int count, char **words, const char **live)
{
	struct sources sources = { .swap_fd = -1 };
	for (int i = 0; i < count; i++) {
		char *value = strchr(words[i], '=');
		size_t name = value ? (size_t)(value - words[i]) : 0;
		if (name == 5 && strncmp(words[i], "image", name) == 0)
			sources.image_pages = value + 1;
		else if (name == 4 && strncmp(words[i], "base", name) == 0)
			sources.base_pages = value + 1;
		else if (name == 6 && strncmp(words[i], "layout", name) == 0)
			sources.base_layout = value + 1;
		else if (name == 4 && strncmp(words[i], "swap", name) == 0)
			sources.swap_fd = atoi(value + 1);
		else if (name == 4 && strncmp(words[i], "live", name) == 0)
			*live = value + 1;
		else
			die("freeze does not know %s", words[i]);
	}
	if (sources.base_layout && !sources.base_pages)
		die("freeze was given the layout of a base, and no base");
	return sources;
}

/* ---- live: a process that goes on serving requests, and a server that holds them back for the stop ---- */

enum { LIVE_READY = 'r', LIVE_STOP = 's', LIVE_RELEASED = 'l' };
/* While it waits for the order to stop, what was written meanwhile is copied this often: a long request would leave much. */
#define LIVE_ROUND_MS 50
#define ARM_WAIT_MS 1
/* While the process runs it comes first. */
#define NICE_RUNNING 10

static int live_open(int dir, const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%s", dir, name);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
		die("cannot reach the server: %s", strerror(errno));
	return fd;
}

static _Noreturn void gave_up(void)
{
	errno = 0;
	die("the server gave up");
}

static void live_tell(int live, char what)
{
	if (send(live, &what, 1, MSG_NOSIGNAL) != 1)
		gave_up();
}

/* Whether the order to stop came within that time. Whoever gives up closes the socket. */
static bool live_told(int live, int timeout_ms)
{
	struct pollfd event = { live, POLLIN, 0 };
	char order;
	if (poll(&event, 1, timeout_ms) == 0)
		return false;
	if (read(live, &order, 1) != 1 || order != LIVE_STOP)
		gave_up();
	return true;
}

/* Copies ahead what it can; NULL: this kernel cannot tell what is written, and all is copied at the stop. */
static struct ahead *copy_ahead(struct dump *dump, int live, uint64_t *stopped_ns)
{
	uint64_t began;
	const char *lacks = tracking_lacks();
	if (lacks && live >= 0)
		refuse("writes to its memory cannot be noted (%s: %s)", lacks, strerror(errno));
	if (lacks)
		return NULL;
	/* A function that is busy now is waited for: its own time limit, which the server holds, ends that. */
	for (uint64_t since = 0; !stop_in_place(&target, false, &began);) {
		if (live >= 0)
			(void)live_told(live, ARM_WAIT_MS);
		else if (!may_park(&since))
			refuse("its main thread does not wait for a request (it never returned to the runtime)");
	}
	/* Looked at again when all is stopped; what is known now need not hold requests back. */
	refuse_company();
	struct ahead *ahead = ahead_arm(&target, dump);
	release_all(&target);
	*stopped_ns += clock_ns(CLOCK_MONOTONIC) - began;
	setpriority(PRIO_PROCESS, 0, live >= 0 ? NICE_RUNNING : 0);
	ahead_rounds(ahead);
	if (live < 0)
		return ahead;
	live_tell(live, LIVE_READY);
	while (!live_told(live, LIVE_ROUND_MS))
		ahead_round(ahead);
	return ahead;
}

static int freeze(int argc, char **argv)
{
	if (argc < 5)
		die("usage: extractor freeze PID DIRECTORY CONTROL_FD [image=PAGES] [base=PAGES [layout=LAYOUT]] [swap=FD] [live=SOCKET]");
	target.pid = atoi(argv[2]);
	target.control_fd = atoi(argv[4]);
	int dir = open(argv[3], O_RDONLY | O_DIRECTORY | O_CLOEXEC), live = -1;
	if (dir < 0)
		die("cannot open %s: %s", argv[3], strerror(errno));
	char *text = NULL;
	size_t text_bytes = 0;
	facts = open_memstream(&text, &text_bytes);
	if (!facts)
		die("out of memory");
	json_open(NULL, '{');
	write_frame_shape();
	const char *live_name = NULL;
	struct sources sources = read_sources(argc - 5, argv + 5, &live_name);
	if (live_name)
		live = live_open(dir, live_name);
	if (sources.base_layout)
		base_open(sources.base_pages, sources.base_layout);
	struct dump *dump = dump_prepare(&target, &sources);

	/* A function stands still while this works: nothing else on the machine is more urgent. Without the right, it is slower. */
	setpriority(PRIO_PROCESS, 0, -20);
	uint64_t stopped_ns = 0;
	struct ahead *ahead = copy_ahead(dump, live, &stopped_ns);
	setpriority(PRIO_PROCESS, 0, -20);
	uint64_t stopped_at = stop_all(&target);
	refuse_company();
	write_clocks();
	read_threads(&target);
	write_signals();
	write_mm();
	write_limits_and_place();
	write_threads(&target);
	write_descriptors(&target, dir);
	write_tmp(&target);
	uint64_t facts_at = clock_ns(CLOCK_MONOTONIC);
	dump_copy(dump, &target, ahead);
	release_all(&target);
	uint64_t released_at = clock_ns(CLOCK_MONOTONIC);
	if (live >= 0)
		live_tell(live, LIVE_RELEASED);
	setpriority(PRIO_PROCESS, 0, live >= 0 ? NICE_RUNNING : 0);
	if (ahead)
		ahead_end(ahead);

	uint64_t stored_pages, anonymous_pages;
	store_tmp();
	dump_store(dump, dir, &stored_pages, &anonymous_pages);
	dump_write_regions(dump);
	dump_write_allocators(dump, target.pid);
	json_open("notes", '[');
	for (int i = 0; i < note_count; i++)
		json_string(NULL, notes[i]);
	json_close(']');
	json_close('}');
	fclose(facts);
	int fd = openat(dir, "facts.json", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	size_t written = 0;
	while (fd >= 0 && written < text_bytes) {
		ssize_t put = write(fd, text + written, text_bytes - written);
		if (put <= 0)
			die("cannot write facts.json: %s", strerror(errno));
		written += (size_t)put;
	}
	if (fd < 0 || close(fd) != 0)
		die("cannot write facts.json: %s", strerror(errno));
	printf("{\"ok\":true,\"stoppedUs\":%" PRIu64 ",\"factsUs\":%" PRIu64 ",\"storeUs\":%" PRIu64
	       ",\"storedPages\":%" PRIu64 ",\"anonymousPages\":%" PRIu64 ",\"aheadBytes\":%" PRIu64 ",\"rounds\":%d,\"stopBytes\":%" PRIu64 "}\n",
	       (stopped_ns + released_at - stopped_at) / 1000, (facts_at - stopped_at) / 1000,
	       (clock_ns(CLOCK_MONOTONIC) - released_at) / 1000, stored_pages, anonymous_pages,
	       ahead ? ahead_bytes(ahead) : 0, ahead ? ahead_round_count(ahead) : 0, dump_stopped_bytes(dump));
	return 0;
}

int main(int argc, char **argv)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc > 1 && strcmp(argv[1], "freeze") == 0)
		return freeze(argc, argv);
	if (argc >= 4 && strcmp(argv[1], "deflate") == 0)
		return deflate(&target, argc, argv);
	if (argc == 3 && strcmp(argv[1], "verify") == 0)
		return verify_pages(argv[2]);
	if (argc > 2 && strcmp(argv[1], "scan") == 0)
		return scan_pages(atoi(argv[2]), argc > 3 && argv[3][0] ? argv[3] : NULL, argc > 4 ? argv[4] : NULL);
	if (argc == 2 && strcmp(argv[1], "tracking") == 0)
		return try_tracking();
	if (argc > 2 && strcmp(argv[1], "resident") == 0)
		return resident_files(argc - 2, argv + 2, CACHE_AS_IS);
	if (argc > 2 && strcmp(argv[1], "evict") == 0)
		return resident_files(argc - 2, argv + 2, CACHE_EVICT);
	if (argc > 2 && strcmp(argv[1], "fetch") == 0)
		return resident_files(argc - 2, argv + 2, CACHE_FETCH);
	if (argc == 3 && strcmp(argv[1], "bandwidth") == 0)
		return read_bandwidth(argv[2]);
	if (argc == 3 && strcmp(argv[1], "gather") == 0)
		return gather(argv[2]);
	if (argc == 4 && strcmp(argv[1], "watch") == 0)
		return watch_wake(&target, atoi(argv[2]), atoi(argv[3]));
	if (argc == 3 && strcmp(argv[1], "pack") == 0)
		return pack_file(argv[2]);
	if (argc == 3 && strcmp(argv[1], "blocked") == 0)
		return print_blocked(atoi(argv[2]));
	die("usage: extractor freeze|deflate|verify|scan|tracking|resident|evict|fetch|bandwidth|gather|pack|watch|blocked …");
}
