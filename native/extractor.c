/*
 * extractor: turns a parked process into facts and pages.
 *
 *   extractor freeze PID DIRECTORY CONTROL_FD [image=PAGES] [base=PAGES [layout=LAYOUT]] [swap=FD] [live=SOCKET]
 *                                                             writes DIRECTORY/pages, DIRECTORY/tmp, DIRECTORY/facts.json
 *   extractor verify PAGES                                    prints the digest of a page space (store.c)
 *   extractor deflate PID CONTROL_FD [limit=…] [kept=…] [unused=…]… 3<>SWAP   moves the memory of a process to a file (deflate.c)
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
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static struct target target;
static bool halfway;
static char notes[64][256];
static int note_count;

uint64_t clock_ns(int clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

/* ---- refusals ---- */

/* Killed, or as good as dead, before we do anything about it. As src/linux/ending.ts looks. */
static bool is_ending(pid_t pid)
{
	enum { EXITING = 0x4, SIGNALED = 0x400 }; /* linux/sched.h */
	char text[2048], is;
	unsigned flags;
	uint64_t pending = read_status(pid, pid, "SigPnd:", 16, 0) | read_status(pid, pid, "ShdPnd:", 16, 0);
	const char *state = read_stat(pid, pid, text, sizeof text);
	if ((pending >> (SIGKILL - 1) & 1) || !state || sscanf(state, " %c %*d %*d %*d %*d %*d %u", &is, &flags) != 2)
		return true;
	return is == 'Z' || is == 'X' || (flags & (EXITING | SIGNALED));
}

static _Noreturn void end_with(const char *code, bool of_instance, const char *format, va_list args)
{
	char text[1024];
	vsnprintf(text, sizeof text, format, args);
	/* Who ended it has that to tell, and not this. */
	bool ended = halfway && !is_ending(target.pid);
	if (halfway)
		kill(target.pid, SIGKILL);
	release_all(&target);
	printf("{\"ok\":false,\"code\":\"%s\",%s\"why\":", ended ? "ended" : halfway ? "failed" : code, of_instance ? "\"scope\":\"instance\"," : "");
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

void lack(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	end_with("unsupported", false, format, args);
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
/*
 * A virtual machine may have given its free memory back to its host (free page reporting), and 2 MiB that we take first then keep the
 * processor for 4 ms and, where machines are nested, cost the other processors their address translations: all that runs is slow
 * meanwhile. So memory is taken in portions and, beside a process that serves, all work is in short pieces with rests between.
 */
#define WORK_NS 400000
#define REST_NS 1200000

static bool beside;

void pace(void)
{
	static uint64_t rested_ns;
	if (!beside || clock_ns(CLOCK_MONOTONIC) - rested_ns < WORK_NS)
		return;
	nanosleep(&(struct timespec){ .tv_nsec = REST_NS }, NULL);
	rested_ns = clock_ns(CLOCK_MONOTONIC);
}

size_t portion(size_t bytes)
{
	return beside && bytes > PORTION_BYTES ? PORTION_BYTES : bytes;
}

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
	const char *lacks;
	bool noted = tracking_known(&lacks) != TRACKED_NOT;
	if (!noted && live >= 0)
		lack("what it writes while it is copied cannot be noted (%s: %s)", lacks, strerror(errno));
	if (!noted)
		return NULL;
	/* A function that is busy now is waited for: its own time limit, which the server holds, ends that. */
	for (uint64_t since = 0; !stop_in_place(&target, false, &began);) {
		if (live >= 0)
			(void)live_told(live, ARM_WAIT_MS);
		else if (!may_park(&since))
			refuse("its main thread does not wait for a request (it never returned to the runtime)");
	}
	/* Looked at again when all is stopped; what is known now need not hold requests back. */
	refuse_company(&target);
	struct ahead *ahead = ahead_arm(&target, dump);
	release_all(&target);
	*stopped_ns += clock_ns(CLOCK_MONOTONIC) - began;
	setpriority(PRIO_PROCESS, 0, live >= 0 ? NICE_RUNNING : 0);
	beside = live >= 0;
	ahead_rounds(ahead);
	beside = false;
	if (live < 0)
		return ahead;
	live_tell(live, LIVE_READY);
	while (!live_told(live, LIVE_ROUND_MS))
		ahead_round(ahead);
	return ahead;
}

static void write_notes(void)
{
	json_open("notes", '[');
	for (int i = 0; i < note_count; i++)
		json_string(NULL, notes[i]);
	json_close(']');
}

static void store_facts(int dir, const char *text, size_t bytes)
{
	int fd = openat(dir, "facts.json", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	size_t written = 0;
	while (fd >= 0 && written < bytes) {
		ssize_t put = write(fd, text + written, bytes - written);
		if (put <= 0)
			die("cannot write facts.json: %s", strerror(errno));
		written += (size_t)put;
	}
	if (fd < 0 || close(fd) != 0)
		die("cannot write facts.json: %s", strerror(errno));
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
	beside = live >= 0;
	struct dump *dump = dump_prepare(&target, &sources);
	beside = false;

	/* A function stands still while this works: nothing else on the machine is more urgent. Without the right, it is slower. */
	setpriority(PRIO_PROCESS, 0, -20);
	uint64_t stopped_ns = 0;
	struct ahead *ahead = copy_ahead(dump, live, &stopped_ns);
	setpriority(PRIO_PROCESS, 0, -20);
	uint64_t stopped_at = stop_all(&target);
	refuse_company(&target);
	write_clocks(&target);
	read_threads(&target);
	write_signals(&target);
	write_settings(&target);
	write_mm(&target);
	write_limits_and_place(&target);
	write_threads(&target);
	tmp_begin(dir);
	write_descriptors(&target);
	write_tmp(&target);
	close_descriptors();
	uint64_t facts_at = clock_ns(CLOCK_MONOTONIC);
	dump_copy(dump, &target, ahead);
	release_all(&target);
	uint64_t released_at = clock_ns(CLOCK_MONOTONIC);
	if (live >= 0)
		live_tell(live, LIVE_RELEASED);
	setpriority(PRIO_PROCESS, 0, live >= 0 ? NICE_RUNNING : 0);
	beside = live >= 0;
	if (ahead)
		ahead_end(ahead);

	uint64_t stored_pages, anonymous_pages;
	store_tmp();
	dump_store(dump, dir, &stored_pages, &anonymous_pages);
	dump_write_regions(dump);
	dump_write_allocators(dump, target.pid);
	write_notes();
	json_close('}');
	bool cut = ferror(facts) != 0;
	if (fclose(facts) != 0 || cut)
		die("out of memory for the facts");
	store_facts(dir, text, text_bytes);
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
