/*
 * Who runs the loop while a function makes its thread wait.
 *
 * The kernel has one lock for each pipe. Whoever writes holds it while bytes are copied, and whoever reads, closes or asks waits for it, beyond any signal.
 * What a function prints goes into a pipe, and it can make its write last: the bytes lie on a page that is not there, its other threads keep the memory's lock busy and
 * leave the one that writes no processor. With one thread in the keeper, nobody else's requests would go on for as long (4.5 s were seen, as long as it was tried).
 *
 * The same goes for the lock of a function's memory: it is taken to open a file that it maps, to close a userfaultfd that watches it, to ask how much it has (19 s, 15 s).
 *
 * So one thread is in charge: it runs the loop, and holds `house` but while it waits for events or is in such a call. When a call
 * lasts RELIEF_NS, a thread that stood by takes charge. The instance stands still from then on: nothing of it is looked at. The thread that waited finishes what
 * it was at when the call returns, lets the instance go on, and stands by in turn. Of an instance whose calls have waited as long in sum, the next SLOW_CALLS are handed over at once: else it could
 * have everybody wait again and again, or a little each time. So are calls for the lock of a memory, which are rare.
 *
 * A thread that waits cannot be ended. So it is another that made all processes (keeper.c).
 */
#include "instance.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/timerfd.h>

enum { RELIEF_NS = 5000000, SHORT_NS = 100000, SLOW_CALLS = 10000, STACK_BYTES = 512 << 10 };

static pthread_mutex_t house = PTHREAD_MUTEX_INITIALIZER;
static void (*run_loop)(void);
static int timer;
static unsigned changes, standing_by;	/* of who is in charge; threads, those that are being made among them */
static bool called;			/* the thread in charge is in a call */
static struct instance *called_for;	/* NULL: of none, and handed over at once */
static uint64_t calls, timed;		/* calls that began; the one that the timer runs for */
static bool timer_runs;
/* Of each thread: the change by which it took charge, and its call. */
static __thread unsigned taken;
static __thread struct instance *in_call_for;
static __thread uint64_t call_began_ns;
static __thread long call_began_sleeps;

bool in_charge(void) { return taken == changes; }

void house_leave(void) { pthread_mutex_unlock(&house); }

void house_enter(void) {
	int error = errno;
	pthread_mutex_lock(&house);
	errno = error;
}

static bool hands_over(void) { return called_for == NULL || called_for->slow > 0; }

/* The time of a call that began while the timer ran for another is taken from when that one's was over: twice RELIEF_NS at most. */
static void time_call(void) {
	timed = calls;
	timer_runs = true;
	struct itimerspec after = {.it_value.tv_nsec = hands_over() ? 1 : RELIEF_NS};
	timerfd_settime(timer, 0, &after, NULL);
}

/* How often this thread has slept. One that others were given the processor before has not. */
static long sleeps(void) {
	struct rusage usage = {0};
	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nvcsw;
}

/* Once its namespace is empty, nobody has a lock. */
static bool may_wait(const struct instance *it) { return it == NULL || it->state != INSTANCE_ENDED; }

void call_begins(struct instance *it) {
	if (!may_wait(it)) return;
	in_call_for = it;
	if (in_charge()) {
		called = true;
		called_for = it;
		calls++;
		if (!timer_runs || hands_over()) time_call();
	}
	call_began_sleeps = sleeps();
	call_began_ns = now_ns();
	house_leave();
}

void call_ends(struct instance *it) {
	if (!may_wait(it)) return;
	int error = errno;
	uint64_t took_ns = now_ns() - call_began_ns;
	bool slept = took_ns > SHORT_NS && sleeps() > call_began_sleeps;
	pthread_mutex_lock(&house);
	if (in_charge()) called = false;
	if (it != NULL && it->slow > 0) it->slow--;
	if (it != NULL && slept && (it->waited_ns += took_ns) > RELIEF_NS) {
		it->waited_ns = 0;
		it->slow = SLOW_CALLS;
	}
	errno = error;
}

static void *stand_by_first(void *unused);

/* Of its own only the stack that it touches. */
static void add_standby(void) {
	pthread_attr_t attributes;
	pthread_t thread;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	int error = pthread_create(&thread, &attributes, stand_by_first, NULL);
	if (error == 0) standing_by++;
	else fprintf(stderr, "keeper: nobody stands by for a function that holds its output (%s); are processes (pids.max) used up?\n", strerror(error));
	pthread_attr_destroy(&attributes);
}

/* Until a call of the thread in charge lasts too long: then this one is. It is counted. */
static void stand_by(void) {
	do {
		uint64_t expired = 0;
		house_leave();
		while (read(timer, &expired, sizeof expired) != sizeof expired) {}
		house_enter();
		timer_runs = false;
		if (called && timed != calls) time_call();
	} while (!called || timer_runs);
	standing_by--;
	called = false;
	taken = ++changes;
	if (called_for != NULL) instance_stand_still(called_for);
	if (standing_by == 0) add_standby();
}

static _Noreturn void take_turns(void) {
	for (;;) {
		run_loop();
		if (in_call_for != NULL) instance_go_on(in_call_for);
		standing_by++;
		stand_by();
	}
}

static void *stand_by_first(void *unused) {
	(void)unused;
	house_enter();
	taken = changes - 1;
	stand_by();
	take_turns();
}

void relief_run(void (*loop)(void)) {
	run_loop = loop;
	timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	if (timer < 0) die("timerfd_create");
	house_enter();
	add_standby();
	take_turns();
}
