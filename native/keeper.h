/*
 * What the parts of the keeper share. The theory of operation of each part heads its file:
 * keeper.c (the loop and the protocol), files.c (what the server has opened), instance.c (what happens to one
 * instance), wire.c (buffers and the outbound queue), builder.c (the process that does everything slow), sandbox.c (root file systems, init, the
 * way to a husk).
 */
#pragma once
#define _GNU_SOURCE 1 /* hence included before the C library */
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "abi.h"

/* System calls that older C libraries do not wrap. */
static inline long sys_clone3(struct clone_args *args) { return syscall(SYS_clone3, args, sizeof *args); }
static inline int sys_close_range(unsigned first, unsigned last) { return (int)syscall(SYS_close_range, first, last, 0); }
static inline int sys_pidfd_open(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }
static inline int sys_pidfd_kill(int pidfd, int signal_number) { return (int)syscall(SYS_pidfd_send_signal, pidfd, signal_number, NULL, 0); }
static inline int sys_open_tree(int dir, const char *path, unsigned flags) { return (int)syscall(SYS_open_tree, dir, path, flags); }
static inline int sys_mount_setattr(int dir, unsigned flags, struct mount_attr *attr) {
	return (int)syscall(SYS_mount_setattr, dir, "", flags, attr, sizeof *attr);
}
static inline int sys_openat2(int dir, const char *path, struct open_how *how) { return (int)syscall(SYS_openat2, dir, path, how, sizeof *how); }

/* Ends the keeper: only at start-up, when memory is out, and when the builder is gone. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

enum {
	TEMPLATES_MAX = 64,
	CONTROLLERS_MAX = 8,
	STAGES_MAX = 64,		/* outstanding at one instance */
	HELPERS_MAX = 256,
	BUILDER_DEPTH = 2,		/* jobs in the builder's socket; the rest waits here, where it can be reordered */
	TEXT_BYTES = 480,
	HELPER_OUTPUT_MAX = 64 << 20,
	OUT_PAUSE_BYTES = 16 << 20,	/* above this, functions are made to wait */
	LOG_PAUSE_BYTES = 1 << 20,	/* above this, those that print: replies of others are behind it */
	READ_BYTES = 256 << 10,
	FILE_OPEN_BYTES_MAX = 8 << 10,	/* of a message: a path, and the name of a file */
};

/* ---- wire.c ---- */

/* Bytes in [start, end) of an allocation that grows. */
struct bytes {
	uint8_t *data;
	size_t start, end, cap;
};
static inline size_t bytes_used(const struct bytes *b) { return b->end - b->start; }
uint8_t *bytes_room(struct bytes *b, size_t count);	/* room for count bytes at the end */
void bytes_take(struct bytes *b, size_t count);		/* drops count bytes at the start */
void bytes_free(struct bytes *b);

extern struct bytes outbound;
/* All that lies there can wait a moment for something else to go with. */
extern bool outbound_waits;
uint8_t *frame_room(size_t bytes_max);			/* where a payload may be written in place… */
void frame_end(uint16_t type, uint32_t id, uint32_t tag, uint16_t flags, size_t count); /* …and its length, once known */
/* Nobody needs it at once: it goes with the next frame, or when nothing has happened for two milliseconds. It wakes the server while a start wants the processor. */
void frame_unhurried(uint16_t type, uint32_t id, uint32_t tag, const void *payload, size_t count);
void frame_put(uint16_t type, uint32_t id, uint32_t tag, const void *payload, size_t count);
void frame_failed(uint16_t request_type, uint32_t id, uint32_t tag, int error, const char *format, ...) __attribute__((format(printf, 5, 6)));

/* Maps the server's ids to pointers. */
struct table {
	struct slot { uint32_t id; void *value; } *slots;
	size_t cap, used, dirty;
};
void *table_get(const struct table *t, uint32_t id);
void table_put(struct table *t, uint32_t id, void *value); /* NULL removes */

/* ---- files.c: what the server has opened, by its own numbers ---- */

void files_start(void);
/* -1 when there is no such file. */
int file_descriptor(uint32_t id);
void file_open(const struct message *head, const char *payload);
void file_temp(const struct message *head, const char *payload);
void file_bytes(const struct message *head, const uint8_t *payload);
void file_close(uint32_t id);
/* The last descriptor of a removed file may take its time to close. */
void close_aside(int fd);
/* -errno when it cannot be made. Sealed: nobody changes it any more. */
int sealed_memfd(const char *name, const uint8_t *data, size_t count, bool seal);

/* ---- cgroup pool: who uses which directory is decided by keeper.c, done by builder.c ---- */

struct cgroups {
	bool on, unified;
	unsigned count;
	struct { char name[16]; char path[256]; int dir; } controllers[CONTROLLERS_MAX];
};
/* Parses the payload of MSG_CGROUPS and opens the parents. 0, or -errno with text. */
int cgroups_open(struct cgroups *groups, const char *payload, size_t count, char *text);
int cgroup_write(const struct cgroups *groups, const char *controller, unsigned slot, const char *file, const char *value);
ssize_t cgroup_read(const struct cgroups *groups, const char *controller, unsigned slot, const char *file, char *buffer, size_t count);

/* ---- builder.c: one datagram for each job and each answer ---- */

enum job_kind { JOB_TEMPLATE, JOB_CGROUPS, JOB_HUSK, JOB_HELPER, JOB_QUIT };
/*
 * A payload (plan, cgroup parents, argv) comes as a memfd beside the job: it may be larger than a datagram. Behind it come a helper's descriptors. Beside JOB_HUSK comes the
 * slot's network namespace, if it has one; beside its answer pidfd, status, channel and, if it is new, the network namespace.
 */
struct job {
	uint32_t kind, id;
	uint32_t slot;		/* of the cgroup pool */
	uint32_t reused;	/* the slot had an instance before: reset its limits */
	struct husk_make make;
};
struct job_answer {
	uint32_t kind, id;
	int32_t error;
	int32_t pid;		/* of init or helper; its pidfd is the first descriptor that comes along */
	uint64_t started_ns;
	char text[TEXT_BYTES];
};
_Noreturn void builder_run(int socket, int keeper_pidfd);
int send_with_fds(int socket, const void *data, size_t count, const int *fds, unsigned fd_count);
ssize_t recv_with_fds(int socket, void *data, size_t count, int *fds, unsigned *fd_count, int flags);
uint64_t now_ns(void);

/* ---- sandbox.c ---- */

enum { INIT_READY, INIT_FAILED, INIT_ENDED };
/* From init to the keeper. READY comes with SCM_CREDENTIALS that name the husk process: the kernel translates its pid. */
struct init_status {
	uint32_t kind;
	int32_t error;
	uint32_t wait_status;
	char text[TEXT_BYTES];
};
/* Builds the root file system of a plan in a new mount namespace; returns its descriptor or -errno with text. */
int template_make(const char *plan, size_t count, int host_mount_ns, char *text);
struct init_plan {
	struct husk_make make;
	const struct cgroups *groups;
	unsigned slot;
	int status, channel, keeper_pidfd;
};
_Noreturn void init_run(const struct init_plan *plan);
/* Where this process's command line stands: functions can read that of their init, which is a copy. */
void init_names(int argc, char **argv);
