/*
 * Shared memory: what a clone can map of files of its own, what it can have by itself, and what is refused (part of the extractor).
 */
#include "memory.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define COMMON_BYTES_MAX (16ULL << 20)

/* What the process has open: once for all of its mappings, for which it stands still now and then. */
struct opened {
	dev_t dev;
	ino_t ino;
	int fd;
	bool reads, writes;
};

static size_t read_opened(pid_t pid, struct opened **list)
{
	char path[64];
	size_t count = 0, room = 0;
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	DIR *dir = opendir(path);
	if (!dir)
		die("cannot list descriptors: %s", strerror(errno));
	*list = NULL;
	for (struct dirent *entry; (entry = readdir(dir));) {
		struct stat is, link; /* whose mode says for what it is open */
		if (entry->d_name[0] == '.' || fstatat(dirfd(dir), entry->d_name, &is, 0) != 0 ||
		    fstatat(dirfd(dir), entry->d_name, &link, AT_SYMLINK_NOFOLLOW) != 0)
			continue;
		*list = grow(*list, count, &room, sizeof **list);
		(*list)[count++] = (struct opened){
			.dev = is.st_dev,
			.ino = is.st_ino,
			.fd = atoi(entry->d_name),
			.reads = link.st_mode & S_IRUSR,
			.writes = link.st_mode & S_IWUSR,
		};
	}
	closedir(dir);
	return count;
}

static bool leads_to(const struct opened *opened, const struct vma *vma)
{
	return opened->ino == vma->inode && opened->dev == makedev(vma->major, vma->minor);
}

static bool has_descriptor(const struct opened *opened, size_t count, const struct vma *vma)
{
	for (size_t i = 0; i < count; i++)
		if (leads_to(&opened[i], vma))
			return true;
	return false;
}

/* Whether a memfd lets nobody map it to write any more. */
static bool sealed(pid_t pid, int fd)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
	int own = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	int seals = own < 0 ? -1 : fcntl(own, F_GET_SEALS);
	if (own >= 0)
		close(own);
	return seals > 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE));
}

/* A descriptor by which this mapping could be made; -1: none. */
static int descriptor_for(pid_t pid, const struct opened *opened, size_t count, const struct vma *vma)
{
	for (size_t i = 0; i < count; i++)
		if (leads_to(&opened[i], vma) && opened[i].reads && (!vma->writes || (opened[i].writes && !sealed(pid, opened[i].fd))))
			return opened[i].fd;
	return -1;
}

/* Whether another mapping leads to pages of shared memory to which this one leads, too. Parts of one mapping, as mprotect(2) makes them, do not. */
static bool maps_twice(const struct vma *vmas, size_t count, const struct vma *vma)
{
	for (const struct vma *other = vmas; other < vmas + count; other++)
		if (other != vma && other->inode == vma->inode && other->major == vma->major && other->minor == vma->minor &&
		    vma->offset < other->offset + (other->end - other->start) && other->offset < vma->offset + (vma->end - vma->start))
			return true;
	return false;
}

static bool starts_with(const char *text, const char *with)
{
	return strncmp(text, with, strlen(with)) == 0;
}

static bool deleted(const struct vma *vma)
{
	static const char mark[] = " (deleted)";
	size_t end = strlen(vma->path), length = sizeof mark - 1;
	return end > length && strcmp(vma->path + end - length, mark) == 0;
}

static bool nameless(const struct vma *vma)
{
	return deleted(vma) && (starts_with(vma->path, "/dev/zero") || starts_with(vma->path, "/dev/shm/") || starts_with(vma->path, "/memfd:"));
}

/* Whether no link is left of a file in /tmp: one of two may have been removed. */
static bool removed(pid_t pid, const struct vma *vma)
{
	char path[96];
	struct stat is;
	snprintf(path, sizeof path, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, pid, vma->start, vma->end);
	return deleted(vma) && starts_with(vma->path, "/tmp/") && stat(path, &is) == 0 && is.st_nlink == 0;
}

/* Of a file that lies in /tmp: a clone opens its own by that. */
static bool has_name(const struct vma *vma)
{
	return starts_with(vma->path, "/tmp/") && !deleted(vma);
}

/* Whether the file lasts as long as the process alone: a clone has its own. */
static bool is_own(const struct vma *vma)
{
	return starts_with(vma->path, "/tmp/") || nameless(vma);
}

/* Shared memory: what a clone can map of its own files, and what anything but one mapping leads to, a name, a descriptor, another mapping. */
void settle_shared(pid_t pid, struct vma *vmas, size_t count)
{
	uint64_t bytes = 0;
	struct opened *opened = NULL;
	size_t opened_count = 0;
	for (struct vma *vma = vmas; vma < vmas + count; vma++) {
		if (vma->kind != COMMON && (vma->kind != FILE_SHARED || !is_own(vma)))
			continue;
		if (!opened)
			opened_count = read_opened(pid, &opened);
		bool named = has_name(vma);
		vma->fd = named ? -1 : descriptor_for(pid, opened, opened_count, vma);
		if (named || (is_own(vma) && vma->fd >= 0))
			vma->kind = BACKED;
		if (vma->kind != COMMON)
			continue;
		const char *why = NULL;
		bytes += vma->end - vma->start;
		if (maps_twice(vmas, count, vma))
			why = "which it maps twice";
		else if (has_descriptor(opened, opened_count, vma))
			why = "which none of its descriptors lets a clone map to write";
		else if (!nameless(vma) && !removed(pid, vma))
			why = "which others can open, or have open";
		else if (bytes > COMMON_BYTES_MAX)
			why = "more than 16 MiB of it";
		if (why)
			refuse("it maps shared, writable memory (%s, %" PRIu64 " KiB), %s", vma->path[0] ? vma->path : "anonymous",
			       (vma->end - vma->start) / 1024, why);
	}
	free(opened);
}

void settle_descriptors(pid_t pid, struct vma *vmas, size_t count)
{
	struct opened *opened = NULL;
	size_t opened_count = 0;
	for (struct vma *vma = vmas; vma < vmas + count; vma++) {
		if (vma->kind != BACKED || has_name(vma))
			continue;
		if (!opened)
			opened_count = read_opened(pid, &opened);
		vma->fd = descriptor_for(pid, opened, opened_count, vma);
		if (vma->fd < 0)
			put_off("it has closed or sealed %s, which it maps, while its memory was copied", vma->path);
	}
	free(opened);
}
