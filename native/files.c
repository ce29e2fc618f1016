/*
 * The files that the server has opened here (part of the keeper): ids of its own, for stages, helpers and the pager to name. Directories of code,
 * page spaces, programs, files without a name.
 */
#include "instance.h"
#include "pager.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static struct table files;

/* Stored as descriptor + 1: a NULL pointer is an absent entry. */
int file_descriptor(uint32_t id) { return (int)(intptr_t)table_get(&files, id) - 1; }

/*
 * The last descriptor of a file that was removed takes its pages and blocks with it, which may wait for the journal: 160 ms were seen, and
 * everybody's requests pass through here. So a thread of its own closes files.
 */
static int closing[2] = {-1, -1};

static void *close_files(void *unused) {
	int fd;
	while (read(closing[0], &fd, sizeof fd) == sizeof fd) close(fd);
	return unused;
}

void files_start(void) {
	sigset_t all, before;
	pthread_t thread;
	if (pipe2(closing, O_CLOEXEC) != 0 || fcntl(closing[1], F_SETFL, O_NONBLOCK) != 0) die("pipe");
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, close_files, NULL) != 0) die("pthread_create");
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Thousands of them at once are more than the pipe takes. */
void close_aside(int fd) {
	if (write(closing[1], &fd, sizeof fd) != sizeof fd) close(fd);
}

static void file_set(uint32_t id, int fd) {
	int old = file_descriptor(id);
	if (old >= 0) {
		paging_forget(id);
		close_aside(old);
	}
	table_put(&files, id, fd < 0 ? NULL : (void *)(intptr_t)(fd + 1));
}

void file_close(uint32_t id) { file_set(id, -1); }

int sealed_memfd(const char *name, const uint8_t *data, size_t count, bool seal) {
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0) return -errno;
	int error = 0;
	for (size_t done = 0; done < count && error == 0;) {
		ssize_t written = write(fd, data + done, count - done);
		if (written < 0 && errno != EINTR) error = errno;
		if (written > 0) done += (size_t)written;
	}
	if (error == 0 && seal && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) != 0) error = errno;
	if (error == 0) return fd;
	close(fd);
	return -error;
}

/*
 * Whether it is the file that /proc/PID/maps names by these numbers. A process may have mapped another at that address since it was looked at, and go
 * on to change that; so it is asked of a mapping of our own. (On some file systems fstat(2) has other numbers.)
 */
static bool is_named(int fd, const char *name) {
	unsigned major, minor, wanted_major, wanted_minor;
	unsigned long start, end, inode, wanted_inode;
	bool same = false;
	char line[8192];
	if (sscanf(name, "%x:%x:%lu", &wanted_major, &wanted_minor, &wanted_inode) != 3) return false;
	void *at = mmap(NULL, 1, PROT_READ, MAP_PRIVATE, fd, 0);
	FILE *maps = at == MAP_FAILED ? NULL : fopen("/proc/self/maps", "re");
	while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
		if (sscanf(line, "%lx-%lx %*s %*s %x:%x %lu", &start, &end, &major, &minor, &inode) != 5 || (uintptr_t)at < start || (uintptr_t)at >= end) continue;
		same = major == wanted_major && minor == wanted_minor && inode == wanted_inode;
		break;
	}
	if (maps != NULL) fclose(maps);
	if (at != MAP_FAILED) munmap(at, 1);
	return same;
}

void file_open(const struct message *head, const char *payload) {
	uint32_t kind;
	if (head->bytes < sizeof kind + 2 || payload[head->bytes - 1] != '\0') return frame_failed(MSG_FILE_OPEN, head->id, head->reserved, EINVAL, "the message is cut short");
	memcpy(&kind, payload, sizeof kind);
	const char *path = payload + sizeof kind;
	if (kind == FILE_MAPPED) call_begins(NULL);
	int fd = open(path, O_CLOEXEC | O_NONBLOCK | (kind == FILE_PATH ? O_PATH | O_DIRECTORY : O_RDONLY));
	if (kind == FILE_MAPPED) call_ends(NULL);
	if (fd < 0) return frame_failed(MSG_FILE_OPEN, head->id, head->reserved, errno, "cannot open %s: %s", path, strerror(errno));
	size_t name_at = sizeof kind + strlen(path) + 1;
	if (kind == FILE_MAPPED && (name_at >= head->bytes || !is_named(fd, payload + name_at))) {
		close_aside(fd);
		return frame_failed(MSG_FILE_OPEN, head->id, head->reserved, ESTALE, "%s is another file by now", path);
	}
	file_set(head->id, fd);
	frame_put(MSG_OK, head->id, head->reserved, NULL, 0);
}

/* A file without a name: whatever happens, it is gone with its last descriptor and mapping. */
static int open_unnamed(const char *directory) {
	int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)) return fd;
	/* A file system that cannot make one (or no such directory, which mkostemp says too). */
	char path[4096];
	if (snprintf(path, sizeof path, "%s/.thaw-XXXXXX", directory) >= (int)sizeof path) return errno = ENAMETOOLONG, -1;
	fd = mkostemp(path, O_CLOEXEC);
	if (fd >= 0) unlink(path);
	return fd;
}

void file_temp(const struct message *head, const char *payload) {
	if (head->bytes < 2 || payload[head->bytes - 1] != '\0') return frame_failed(MSG_FILE_TEMP, head->id, head->reserved, EINVAL, "the message is cut short");
	int fd = open_unnamed(payload);
	if (fd < 0) return frame_failed(MSG_FILE_TEMP, head->id, head->reserved, errno, "cannot make a file in %s: %s", payload, strerror(errno));
	file_set(head->id, fd);
	frame_put(MSG_OK, head->id, head->reserved, NULL, 0);
}

void file_bytes(const struct message *head, const uint8_t *payload) {
	int fd = sealed_memfd("thaw-program", payload, head->bytes, true);
	if (fd < 0) return frame_failed(MSG_FILE_BYTES, head->id, head->reserved, -fd, "cannot keep a program of %u bytes: %s", head->bytes, strerror(-fd));
	file_set(head->id, fd);
}
