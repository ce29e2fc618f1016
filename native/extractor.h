/* What the parts of the extractor share. See extractor.c for the theory of operation. */
#pragma once
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>
#include "abi.h"

#define PAGE ((uint64_t)4096)

/* extractor.c: one sentence of refusal or failure, then the end. The stopped process goes on (see release_all). */
_Noreturn void refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Stands in the way now, and may not a moment later. */
_Noreturn void put_off(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* This kernel cannot do it, whatever the process is about. */
_Noreturn void lack(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* What this process is about, and another of the same function need not be. */
_Noreturn void refuse_instance(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* From here on a failure leaves half a process: all of them end it instead of letting it go. */
void no_way_back(bool on);
/* A plain sentence for the image report. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* json.c. The facts file, written with these few. `key` may be NULL inside an array. */
extern FILE *facts;
void json_open(const char *key, char bracket);
void json_close(char bracket);
void json_string(const char *key, const char *value);
/* For names of files, which may be any bytes: refuses those that JSON cannot hold. */
void json_path(const char *key, const char *path);
void json_bytes(const char *key, const void *bytes, size_t count);
void json_hex(const char *key, uint64_t value);
void json_int(const char *key, int64_t value);
void json_bool(const char *key, bool value);
/* A quoted string of JSON to any stream. */
void json_text(FILE *out, const char *text);

uint64_t clock_ns(int clock);
/* Between two pieces of work: rests if the process serves requests beside us, and we have worked a while. */
void pace(void);
/* How much memory to take at once, and how much of so many bytes to write. */
#define PORTION_BYTES (256UL << 10)
size_t portion(size_t bytes);

/* stop.c */
#define THREADS_MAX 256
/* Indexes into struct user_regs_struct. */
enum { R_R12 = 3, R_RBX = 5, R_R10 = 7, R_R9, R_R8, R_RAX, R_RCX, R_RDX, R_RSI, R_RDI, R_ORIG_RAX, R_RIP, R_CS, R_RSP = 19, R_SS, R_FS_BASE };
struct thread {
	pid_t tid;
	uint64_t regs[27]; /* struct user_regs_struct, system calls in progress made restartable */
	uint64_t original_regs[27];
	uint8_t *xstate;
	size_t xstate_bytes;
	uint64_t sigmask;
	bool trapped; /* somebody sent it a SIGTRAP meanwhile; release_all sends it again */
	bool masked; /* its signals are held back; release_all puts sigmask back */
	uint64_t altstack[3];
	uint64_t robust_list, robust_bytes;
	uint64_t rseq, rseq_bytes, rseq_signature;
	uint64_t tid_address, tid_word;
	int number; /* in its own namespace */
	bool restarts; /* it stands before the system call in which it was stopped */
	bool sleeps; /* and that will end only when another thread wants it to */
	char name[17];
};
struct target {
	pid_t pid;
	int control_fd;
	struct thread threads[THREADS_MAX];
	int thread_count;
	uint64_t vdso, syscall_at;
	bool steps, steps_known; /* how system calls are run in it */
};
/* Stops every thread while the main one waits for a request; refuses when it never does. Signals wait, too.
   Returns when the stop began, CLOCK_MONOTONIC nanoseconds. */
uint64_t stop_all(struct target *target);
/* Stops every thread, or the main one alone, if the main one waits for a request; false otherwise. For a process that goes on
   where it is: signals wait, and of other threads only original_regs are read and nothing is written back, unless the kernel restarts nothing. */
bool stop_in_place(struct target *target, bool all, uint64_t *began);
/* Pauses for a moment between two tries to stop it. False once its main thread has had seconds to come back to its read: it, or who holds a
   lock that it needs, may have to wait for a processor. `since` is 0 at first. */
bool may_park(uint64_t *since);
/* Lets the process go on as if nothing had been. */
void release_all(struct target *target);

/* inject.c */
/* Has a stopped thread run one system call; several may do so at once. Its result. */
void start_call(struct target *target, struct thread *thread, long nr, const uint64_t args[6]);
long finish_call(struct target *target, struct thread *thread);
/* Runs one system call in the stopped main thread. */
long inject(struct target *target, struct thread *thread, long nr, const uint64_t args[6]);

/* Runs system calls in the stopped main thread, all of them whatever each returns. `page` and what follows it is writable and
   executable in the process and holds SCRIPT_TABLE_AT bytes and the calls. */
#define SCRIPT_TABLE_AT 64
struct script_call {
	uint64_t nr, args[6];
	int64_t result;
};
void run_script(struct target *target, int mem, uint64_t page, struct script_call *calls, size_t count);

/* threads.c */
/* A thread's number in the innermost namespace, as its process sees it; -1 where that cannot be read. */
int inner_tid(pid_t pid, pid_t thread);
void read_rseq(struct thread *thread);
/* Reads everything that only the threads themselves know. */
void read_threads(struct target *target);
void write_threads(const struct target *target);

/* settings.c */
/* What prctl(2) set for the process. */
void write_settings(struct target *target);
/* How and where a thread is scheduled, members of what is open in the facts. */
void write_scheduling(const struct target *target, const struct thread *thread);

/* process.c */
/* The process that it is a child of; 0: it is gone. */
pid_t parent_process(pid_t pid);
/* What /proc/PID/task/TID/stat says behind the name, which may hold anything: " S PARENT ...", in `text`; NULL: it is gone. */
char *read_stat(pid_t pid, pid_t tid, char *text, size_t room);
/* A number in /proc/PID/task/TID/status; `otherwise` where it cannot be read. */
uint64_t read_status(pid_t pid, pid_t tid, const char *name, int base, uint64_t otherwise);
void write_clocks(const struct target *target);
/* Addresses that prctl(PR_SET_MM_MAP) sets again. */
void write_mm(struct target *target);
/* What was sent to it and not heard yet is refused. */
void write_signals(struct target *target);
void write_limits_and_place(const struct target *target);
/* Another process in the sandbox cannot be part of the image: it is named. */
void refuse_company(const struct target *target);
/* What the kernel itself puts into a signal frame says how large one may be here. */
void write_frame_shape(void);

/* descriptors.c */
/* Makes the image's `tmp` file there, once there is something to store. */
void tmp_begin(int image_dir);
void write_descriptors(const struct target *target);
/* While the target has its own: what it closes when it goes on would stay open here, with its locks, and who reads its end would wait. */
void close_descriptors(void);
void write_tmp(const struct target *target);
/* The process's own directory in /proc has another name after a thaw: that of a path, for as long as the next call; NULL: it will be nowhere. */
const char *lasting_path(pid_t of, const char *link);
/* Makes what write_tmp copied durable; the process runs again by then. */
void store_tmp(void);

/* options.c: the options of a socket that are not as on a new one, as a list in the facts. */
void write_socket_options(int fd, int domain, int type);

/* memory.c, store.c */
struct dump;
/* What a process may have mapped as its memory: the page spaces of its image and of that image's base, and the file of its
   hibernation. NULL and -1: not this process. */
struct sources {
	const char *image_pages, *base_pages;
	const char *base_layout; /* set: the base's pages need not be stored again (delta.c) */
	int swap_fd;
};
struct dump *dump_prepare(const struct target *target, const struct sources *sources);
/* All is stopped. `ahead`: what was copied before (ahead.c); NULL: nothing. */
struct ahead;
void dump_copy(struct dump *dump, const struct target *target, struct ahead *ahead);
uint64_t dump_stopped_bytes(const struct dump *dump);
/* Which of the mapped files have an allocator that cannot live on file mappings. */
void dump_write_allocators(const struct dump *dump, pid_t pid);
void dump_store(struct dump *dump, int image_dir, uint64_t *stored_pages, uint64_t *anonymous_pages);
void dump_write_regions(const struct dump *dump);
int verify_pages(const char *path);

/* present.c */
int scan_pages(pid_t pid, const char *pages_path, const char *base_path);

/* delta.c: what an image shares with its base. Extents of the base in order of address, as it was laid out. */
struct base_extent {
	uint64_t start, end, slot;
};
/* What became of a page: nothing in base and image, other bytes than the base's, the base's bytes, zeros where the base has bytes;
   and what need not be stored. */
enum { PAGE_NONE, PAGE_CHANGED, PAGE_SHARED, PAGE_GONE, PAGE_LEFT_OUT };
/* One mapping of a thawed process; `slot`, in the base's page space, only if it comes from there. */
struct cut {
	uint64_t start, end, slot;
	bool from_base;
};
/* `layout`: "start-end:slot,…", hexadecimal. */
void base_open(const char *pages, const char *layout);
/* One byte for each page of a region, PAGE_GONE where the base has bytes; NULL where it has none. The caller's to free. */
uint8_t *base_classes(uint64_t start, uint64_t end);
void base_compare(uint8_t *classes, uint64_t start, uint64_t address, const uint8_t *bytes, uint64_t pages);
/* Cuts a region; marks what is left out. The list is the caller's to free. */
size_t base_pieces(uint8_t *classes, uint64_t start, uint64_t end, struct cut **pieces);
/* Adds the pages of a region that was cut: those that are left out of the image, and its own. */
void base_count(const uint8_t *classes, uint64_t pages, uint64_t *shared, uint64_t *own);
/* Whether an image that leaves out `shared` pages and stores `own` is worth its mappings. */
bool base_pays(uint64_t shared, uint64_t own);

/* deflate.c */
int deflate(struct target *target, int argc, char **argv);

/* cache.c */
enum cache_change { CACHE_AS_IS, CACHE_EVICT, CACHE_FETCH };
int resident_files(int count, char **paths, enum cache_change change);
int read_bandwidth(const char *path);

/* gather.c */
/* Of a file, as descriptor 3 of `gather` and `pack` lists them: 64-bit pairs. */
struct part {
	uint64_t offset, bytes;
};

const struct part *map_parts(size_t *count);
int gather(const char *path);

/* watch.c */
int watch_wake(struct target *target, pid_t pid, int control_fd);

/* pack.c */
int pack_file(const char *path);

/* blocked.c */
int print_blocked(pid_t pid);
