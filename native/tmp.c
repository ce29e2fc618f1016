/*
 * The image's `tmp` file (part of the extractor): the contents of /tmp, and those of open files that have no name any more.
 */
#include "descriptors.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <linux/xattr.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define TMP_BYTES_MAX (64ULL << 20)
#define TMP_ENTRIES_MAX 4096
#define TMP_DEPTH_MAX 32

static int image_directory = -1, tmp_file = -1;
static uint64_t stored_bytes;
static int tmp_entries;

void tmp_begin(int image_dir)
{
	image_directory = image_dir;
}

static void open_tmp_file(void)
{
	tmp_file = openat(image_directory, "tmp", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (tmp_file < 0)
		die("cannot make the image's tmp file: %s", strerror(errno));
}

void store_contents(int from, uint64_t bytes, const char *what)
{
	static char copy[65536];
	if (stored_bytes + bytes > TMP_BYTES_MAX)
		refuse("%s: more than %llu MiB of temporary files", what, TMP_BYTES_MAX >> 20);
	json_int("at", (int64_t)stored_bytes);
	json_int("bytes", (int64_t)bytes);
	uint64_t done = 0;
	while (done < bytes) {
		size_t part = bytes - done < sizeof copy ? (size_t)(bytes - done) : sizeof copy;
		ssize_t got = pread(from, copy, part, (off_t)done);
		if (got <= 0)
			die("cannot read %s: %s", what, strerror(errno));
		if (tmp_file < 0)
			open_tmp_file();
		if (pwrite(tmp_file, copy, (size_t)got, (off_t)stored_bytes) != got)
			die("cannot write the image's tmp file: %s", strerror(errno));
		done += (uint64_t)got;
		stored_bytes += (uint64_t)got;
	}
}

/* Extended ones, of the namespace that programs may write. */
static void write_attributes(int fd, const char *path)
{
	static char names[XATTR_LIST_MAX];
	static uint8_t value[XATTR_SIZE_MAX];
	ssize_t length = flistxattr(fd, names, sizeof names);
	bool any = false;
	if (length < 0 && errno == ENOTSUP)
		return;
	if (length < 0)
		die("cannot list the attributes of %s: %s", path, strerror(errno));
	for (const char *name = names; name < names + length; name += strlen(name) + 1) {
		if (strncmp(name, XATTR_USER_PREFIX, XATTR_USER_PREFIX_LEN) != 0)
			continue;
		ssize_t bytes = fgetxattr(fd, name, value, sizeof value);
		if (bytes < 0)
			die("cannot read an attribute of %s: %s", path, strerror(errno));
		if (!any)
			json_open("attributes", '[');
		any = true;
		json_open(NULL, '{');
		json_bytes("name", (const uint8_t *)name, strlen(name));
		json_bytes("value", value, (size_t)bytes);
		json_close('}');
	}
	if (any)
		json_close(']');
}

static void write_tree(int dir, const char *prefix, int depth)
{
	DIR *list = fdopendir(dir);
	if (!list)
		die("cannot list /tmp of the process: %s", strerror(errno));
	if (depth > TMP_DEPTH_MAX)
		refuse("/tmp is nested deeper than %d directories", TMP_DEPTH_MAX);
	for (struct dirent *entry; (entry = readdir(list));) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		struct stat is;
		char path[4096], target[4096];
		if (snprintf(path, sizeof path, "%s/%s", prefix, entry->d_name) >= (int)sizeof path)
			refuse("a path under /tmp is too long");
		if (fstatat(dir, entry->d_name, &is, AT_SYMLINK_NOFOLLOW) != 0)
			die("cannot look at %s: %s", path, strerror(errno));
		if (++tmp_entries > TMP_ENTRIES_MAX)
			refuse("/tmp holds more than %d files", TMP_ENTRIES_MAX);
		json_open(NULL, '{');
		json_path("path", path);
		json_int("inode", (int64_t)is.st_ino);
		json_int("mode", is.st_mode & 07777);
		json_int("mtimeS", is.st_mtim.tv_sec);
		json_int("mtimeNs", is.st_mtim.tv_nsec);
		json_int("atimeS", is.st_atim.tv_sec);
		json_int("atimeNs", is.st_atim.tv_nsec);
		int fd = -1;
		if (S_ISDIR(is.st_mode)) {
			json_string("type", "directory");
			fd = openat(dir, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			if (fd < 0)
				die("cannot open %s: %s", path, strerror(errno));
			write_attributes(fd, path);
			json_close('}');
			write_tree(fd, path, depth + 1);
			continue;
		}
		if (S_ISLNK(is.st_mode)) {
			ssize_t got = readlinkat(dir, entry->d_name, target, sizeof target - 1);
			if (got < 0)
				die("cannot read %s: %s", path, strerror(errno));
			target[got] = 0;
			json_string("type", "link");
			json_path("target", target);
		} else if (S_ISREG(is.st_mode)) {
			json_string("type", "file");
			/* Not waiting: a mapping keeps a lease whose descriptor is closed. */
			fd = openat(dir, entry->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
			if (fd < 0 && errno == EWOULDBLOCK)
				refuse("there is a lease on %s", path);
			if (fd < 0)
				die("cannot open %s: %s", path, strerror(errno));
			store_contents(fd, (uint64_t)is.st_size, path);
			write_attributes(fd, path);
			close(fd);
		} else {
			refuse("%s is neither a file, a directory nor a link", path);
		}
		json_close('}');
	}
	closedir(list);
}

void write_tmp(const struct target *target)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/root/tmp", target->pid);
	int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		die("cannot open /tmp of the process: %s", strerror(errno));
	json_open("tmp", '[');
	write_tree(dir, "/tmp", 0);
	json_close(']');
	snprintf(path, sizeof path, "/proc/%d/root/dev/shm", target->pid);
	DIR *shm = opendir(path);
	for (struct dirent *entry; shm && (entry = readdir(shm));)
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			refuse("it holds POSIX shared memory (/dev/shm/%s)", entry->d_name);
	if (shm)
		closedir(shm);
}

void store_tmp(void)
{
	if (tmp_file >= 0 && fdatasync(tmp_file) != 0)
		die("cannot write the image's tmp file: %s", strerror(errno));
}
