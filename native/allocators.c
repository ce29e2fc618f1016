/*
 * Allocators that rely on zeros where memory was given back: which mapped files hold one (part of the extractor).
 */
#include "memory.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of one file, and of all together: a function may map what it likes, and as often. */
#define FILE_BYTES_MAX (1ULL << 30)
#define READ_BYTES_MAX (4ULL << 30)

/* A library that was linked with jemalloc has its interface among its dynamic symbols (mallctl, je_mallctl, _rjem_mallctl: whatever its prefix) or,
 * where that is hidden, what it says when it aborts among its constants. */
static const char INTERFACE[] = "mallctl";
static const char MESSAGES[] = "<jemalloc>: ";

static void count_read(uint64_t bytes)
{
	static uint64_t read_bytes;
	read_bytes += bytes < 4096 ? 4096 : bytes;
	if (read_bytes > READ_BYTES_MAX)
		refuse("it maps more code than is looked through for its allocators (%llu GiB)", READ_BYTES_MAX >> 30);
}

/*
 * Files are read and not mapped: a fault in a hole of a function's own file would give it a page that is counted to us, and one behind its end would be our end.
 * So every part of one may be missing, or change; what it says of itself is for the function's own good.
 */
static bool read_part(int fd, void *to, size_t bytes, uint64_t offset)
{
	count_read(bytes);
	return offset <= INT64_MAX - bytes && pread(fd, to, bytes, (off_t)offset) == (ssize_t)bytes;
}

/* Constants of a program are not looked through: Node has tens of megabytes of them. */
static bool is_program(int fd, const Elf64_Ehdr *head)
{
	Elf64_Phdr segment = { 0 };
	if (head->e_phentsize != sizeof segment)
		return true;
	for (unsigned i = 0; i < head->e_phnum; i++)
		if (!read_part(fd, &segment, sizeof segment, head->e_phoff + i * sizeof segment) || segment.p_type == PT_INTERP)
			return true;
	return false;
}

/* Whether a section's name begins so. */
static bool is_named(int fd, const Elf64_Shdr *names, const Elf64_Shdr *section, const char *name)
{
	char begins[16];
	size_t length = strlen(name);
	return section->sh_name <= names->sh_size && length <= names->sh_size - section->sh_name &&
	       read_part(fd, begins, length, names->sh_offset + section->sh_name) && memcmp(begins, name, length) == 0;
}

/* Looks through the data in a section; what is sought is shorter than a page. `left`: as much as may be read of this file yet. */
static bool holds(int fd, const Elf64_Shdr *section, const char *sought, size_t bytes, uint64_t *left)
{
	static char part[1 << 20];
	uint64_t end = section->sh_offset + section->sh_size;
	for (off_t at = (off_t)section->sh_offset; (uint64_t)at < end && (at = lseek(fd, at, SEEK_DATA)) >= 0 && (uint64_t)at < end;) {
		size_t wanted = end - (uint64_t)at < sizeof part ? (size_t)(end - (uint64_t)at) : sizeof part;
		ssize_t got = pread(fd, part, wanted, at);
		if (got <= 0 || (uint64_t)got > *left)
			return false;
		*left -= (uint64_t)got;
		count_read((uint64_t)got);
		if (memmem(part, (size_t)got, sought, bytes))
			return true;
		if ((size_t)got < bytes || (uint64_t)(at + got) >= end)
			return false;
		at += got - (off_t)bytes + 1;
	}
	return false;
}

static bool sections_hold_jemalloc(int fd, const Elf64_Ehdr *head, const Elf64_Shdr *sections, uint64_t left)
{
	bool library = !is_program(fd, head) && head->e_shstrndx < head->e_shnum;
	for (unsigned i = 0; i < head->e_shnum; i++) {
		const Elf64_Shdr *section = &sections[i];
		if (!(section->sh_flags & SHF_ALLOC) || section->sh_offset > INT64_MAX || section->sh_size > INT64_MAX - section->sh_offset)
			continue;
		if (section->sh_type == SHT_STRTAB && holds(fd, section, INTERFACE, sizeof INTERFACE, &left))
			return true;
		if (section->sh_type == SHT_PROGBITS && library && is_named(fd, &sections[head->e_shstrndx], section, ".rodata") &&
		    holds(fd, section, MESSAGES, sizeof MESSAGES - 1, &left))
			return true;
	}
	return false;
}

/* Sections do not overlap; where they are made to, the file is not read again for each. */
static bool file_holds_jemalloc(int fd, uint64_t bytes)
{
	Elf64_Ehdr head;
	Elf64_Shdr *sections = NULL;
	bool found = read_part(fd, &head, sizeof head, 0) && memcmp(head.e_ident, ELFMAG, SELFMAG) == 0 && head.e_shentsize == sizeof *sections &&
		     (sections = malloc((head.e_shnum + 1) * sizeof *sections)) && read_part(fd, sections, head.e_shnum * sizeof *sections, head.e_shoff) &&
		     sections_hold_jemalloc(fd, &head, sections, bytes < FILE_BYTES_MAX ? bytes : FILE_BYTES_MAX);
	free(sections);
	return found;
}

/* Of a mapping, whose file may be the one before's. */
static bool holds_jemalloc(const char *path, const char *name)
{
	static struct stat last;
	static bool found;
	struct stat is;
	/* Not waiting: 45 s for each such file are the function's to choose. */
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 && errno == EWOULDBLOCK)
		refuse("there is a lease on %s", name);
	if (fd < 0)
		return false;
	if (fstat(fd, &is) != 0) {
		close(fd);
		return false;
	}
	if (is.st_ino != last.st_ino || is.st_dev != last.st_dev) {
		last = is;
		found = S_ISREG(is.st_mode) && file_holds_jemalloc(fd, (uint64_t)is.st_size);
	}
	close(fd);
	return found;
}

size_t next_allocator_that_trusts_zeros(pid_t pid, const struct vma *vmas, size_t count, size_t from)
{
	size_t i = from;
	for (; i < count; i++) {
		const struct vma *vma = &vmas[i];
		char path[96];
		if (vma->kind != FILE_PRIVATE || !(vma->prot & 4) || vma->path[0] != '/' || strstr(vma->path, " (deleted)"))
			continue;
		const char *slash = strrchr(vma->path, '/');
		snprintf(path, sizeof path, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, pid, vma->start, vma->end);
		if (strncmp(slash + 1, "libjemalloc", 11) == 0 || holds_jemalloc(path, vma->path))
			break;
	}
	return i;
}
