/* Descriptors (descriptors.c), and those that are sockets (sockets.c). */
#pragma once
#include "extractor.h"
#include <sys/stat.h>

/* Of what lies unread in a pipe or a socket. */
#define QUEUE_BYTES_MAX (1 << 20)

struct descriptor {
	int fd, mine, same;
	uint64_t flags, pos;
	char link[4096]; /* what the kernel tells at most */
	char *info; /* what /proc tells of it: an epoll has a line for each entry */
	struct stat is;
};

/* Of the process, with duplicates of them. */
extern struct descriptor *descriptors;
extern int descriptor_count;

/* A number behind its name in fdinfo; 0: it is not there. */
uint64_t info_number(const struct descriptor *d, const char *name, int base);
/* What poll(2) says of it now. */
int events_of(const struct descriptor *d);
/* What a clone shall read is all of it, or the function is told. `apart`: what it is that one read does not give, where there is room. */
void refuse_rest(const struct descriptor *d, size_t got, const char *where, const char *apart);
/* Enters a namespace of the process; the way back, for leave_namespace. */
int enter_namespace(const char *name, int kind);
int leave_namespace(int home, int kind);

/* sockets.c */
void write_socket(const struct descriptor *d);

/* tmp.c: appends a file's bytes to the image's `tmp` file; writes where they are. */
void store_contents(int from, uint64_t bytes, const char *what);
