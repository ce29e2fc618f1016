/*
 * What cannot be hibernated, by name (part of the extractor).
 */
#include "deflate.h"
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAPPINGS_SPARE 256
#define READ_BYTES_MAX (4ULL << 30)

/* A library that was linked with jemalloc has its interface among its dynamic symbols (mallctl, je_mallctl, _rjem_mallctl: whatever its prefix) or,
 * where that is hidden, what it says when it aborts among its constants. */
static const char INTERFACE[] = "mallctl";
static const char MESSAGES[] = "<jemalloc>: ";

/*
 * Files are read and not mapped: a fault in a hole of a function's own file would give it a page that is counted to us, and one behind its end would be our end.
 * So every part of one may be missing, or change; what it says of itself is for the function's own good.
 */
static bool read_part(int fd, void *to, size_t bytes, uint64_t offset)
{
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

/* Looks through the data in a section; what is sought is shorter than a page. `left`: as much as may be read yet. */
static bool holds(int fd, const Elf64_Shdr *section, const char *sought, size_t bytes, uint64_t *left)
{
	static char part[1 << 20];
	uint64_t end = section->sh_offset + section->sh_size;
	for (off_t at = (off_t)section->sh_offset; (uint64_t)at < end && (at = lseek(fd, at, SEEK_DATA)) >= 0 && (uint64_t)at < end;) {
		size_t wanted = end - (uint64_t)at < sizeof part ? (size_t)(end - (uint64_t)at) : sizeof part;
		ssize_t got = pread(fd, part, wanted, at);
		if (got <= 0 || (uint64_t)got > *left)
			return false;
		if (memmem(part, (size_t)got, sought, bytes))
			return true;
		if ((size_t)got < bytes || (uint64_t)(at + got) >= end)
			return false;
		*left -= (uint64_t)got;
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

static bool holds_jemalloc(const char *path, const char *name)
{
	struct stat is;
	Elf64_Ehdr head;
	Elf64_Shdr *sections = NULL;
	bool found = false;
	/* Not waiting: 45 s for each such file are the function's to choose. */
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 && errno == EWOULDBLOCK)
		refuse("there is a lease on %s", name);
	if (fd >= 0 && fstat(fd, &is) == 0 && S_ISREG(is.st_mode) && read_part(fd, &head, sizeof head, 0) && memcmp(head.e_ident, ELFMAG, SELFMAG) == 0 &&
	    head.e_shentsize == sizeof *sections && (sections = malloc((head.e_shnum + 1) * sizeof *sections)) &&
	    read_part(fd, sections, head.e_shnum * sizeof *sections, head.e_shoff))
		/* Sections do not overlap; where they are made to, the file is not read again for each. */
		found = sections_hold_jemalloc(fd, &head, sections, (uint64_t)is.st_size < READ_BYTES_MAX ? (uint64_t)is.st_size : READ_BYTES_MAX);
	free(sections);
	if (fd >= 0)
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

/* Whether the runtime says that the library has one that has given out nothing so far. */
static bool is_unused(const struct deflation *d, const char *path)
{
	for (int i = 0; i < d->unused_count; i++)
		if (strcmp(strrchr(path, '/') + 1, d->unused[i]) == 0)
			return true;
	return false;
}

/* Replacing fails in its midst where the kernel has no room for a mapping: a run of changed pages in a mapping of a file makes two more. */
void refuse_mappings(const struct view *view)
{
	unsigned long mappings_max = 65530;
	size_t wanted = view->vma_count + MAPPINGS_SPARE;
	for (size_t i = 0; i < view->piece_count; i++)
		wanted += view->pieces[i].over_file ? 2 : 0;
	FILE *limit = fopen("/proc/sys/vm/max_map_count", "re");
	if (limit) {
		if (fscanf(limit, "%lu", &mappings_max) != 1)
			mappings_max = 65530;
		fclose(limit);
	}
	if (wanted > mappings_max)
		refuse("it has %zu mappings, and would have up to %zu: vm.max_map_count is %lu", view->vma_count, wanted, mappings_max);
}

static void refuse_process(const struct deflation *d, pid_t pid, bool files)
{
	char path[64], line[4096];
	unsigned major, minor;
	uint64_t inode;
	if (syscall(SYS_kcmp, d->target->pid, pid, KCMP_VM, 0, 0) == 0)
		refuse_instance("another process shares its memory");
	if (!files)
		return;
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	FILE *maps = fopen(path, "re");
	while (maps && fgets(line, sizeof line, maps))
		if (sscanf(line, "%*s %*s %*s %x:%x %" SCNu64, &major, &minor, &inode) == 3 && inode == d->swap.st_ino &&
		    makedev(major, minor) == d->swap.st_dev)
			refuse_instance("a process that was forked since its last hibernation maps the same file, and would see what is written to it");
	if (maps)
		fclose(maps);
}

static void refuse_children(const struct deflation *d, pid_t pid, bool files)
{
	char path[96];
	snprintf(path, sizeof path, "/proc/%d/task", pid);
	DIR *tasks = opendir(path);
	for (struct dirent *entry; tasks && (entry = readdir(tasks));) {
		int child;
		snprintf(path, sizeof path, "/proc/%d/task/%.16s/children", pid, entry->d_name);
		FILE *list = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
		while (list && fscanf(list, "%d", &child) == 1) {
			if (child != d->target->pid)
				refuse_process(d, child, files);
			refuse_children(d, child, files);
		}
		if (list)
			fclose(list);
	}
	if (tasks)
		closedir(tasks);
}

static int by_offset(const void *left, const void *right)
{
	const struct vma *a = *(const struct vma *const *)left, *b = *(const struct vma *const *)right;
	return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* A mapping that grew beyond its cells maps those of another, and what one of them wrote would be stored for both. */
void refuse_overlaps(const struct deflation *d, const struct view *view)
{
	size_t count = 0;
	const struct vma **mapped = malloc((view->vma_count + 1) * sizeof *mapped);
	if (!mapped)
		die("out of memory");
	for (size_t i = 0; i < view->vma_count; i++)
		if (in_swap(d, &view->vmas[i]))
			mapped[count++] = &view->vmas[i];
	qsort(mapped, count, sizeof *mapped, by_offset);
	for (size_t i = 1; i < count; i++)
		if (mapped[i - 1]->offset + (mapped[i - 1]->end - mapped[i - 1]->start) > mapped[i]->offset)
			refuse_instance("memory that was hibernated has grown by gigabytes since, over the place of other memory in the file");
	free(mapped);
}

/* The last process or thread that was made on this machine; 0: unknown. */
static unsigned long last_made(void)
{
	char text[128];
	unsigned long pid = 0;
	int fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[got < 0 ? 0 : got] = 0;
	const char *last = strrchr(text, ' ');
	return last && sscanf(last, "%lu", &pid) == 1 ? pid : 0;
}

/*
 * Another process with the same memory would go on while it is replaced. One that was forked after an earlier hibernation has private mappings
 * of the file, whose pages, as long as it writes none of its own, are what this process hibernates with. Asked before anything is written
 * and again when all is stopped: who is forked between the two is found, but may have seen pages change by then.
 */
void refuse_sharers(const struct deflation *d, const struct view *view)
{
	static unsigned long looked_after;
	char text[2048];
	pid_t parent = 0;
	bool files = false;
	unsigned long last = last_made();
	if (last != 0 && last == looked_after)
		return; /* nobody forked since */
	looked_after = last;
	for (size_t i = 0; i < view->vma_count && !files; i++)
		files = in_swap(d, &view->vmas[i]);
	const char *state = read_stat(d->target->pid, d->target->pid, text, sizeof text);
	if (!state || sscanf(state, " %*c %d", &parent) != 1)
		die("cannot read the state of process %d: %s", d->target->pid, strerror(errno));
	/* What lost its parent is the child of init, which is its own. */
	refuse_children(d, parent, files);
}

/*
 * Memory in the file is counted to nobody, and after a wake there is room for as much again. Of one that has as much there as it may have in all no more is
 * taken: it could use the disk up, one hibernation after another.
 */
void refuse_beyond_limit(const struct deflation *d)
{
	uint64_t stored = (uint64_t)d->swap.st_blocks * 512;
	if (d->limit_bytes && stored > d->limit_bytes)
		refuse_instance("what it was hibernated with takes %" PRIu64 " MiB, and it may have %" PRIu64 " MiB of memory", stored >> 20, d->limit_bytes >> 20);
}

void refuse_unfit(const struct deflation *d, const struct view *view)
{
	struct statvfs where;
	if (fstatvfs(SWAP_FD, &where) == 0 && (where.f_flag & ST_NOEXEC))
		refuse("its memory may hold code, and the directory for it is mounted noexec");
	for (size_t i = 0; i < view->vma_count; i++)
		if (view->vmas[i].watched)
			refuse("its memory is watched by a userfaultfd");
	for (size_t i = 0; (i = next_allocator_that_trusts_zeros(d->target->pid, view->vmas, view->vma_count, i)) < view->vma_count; i++)
		if (!is_unused(d, view->vmas[i].path))
			refuse("its allocator (jemalloc, in %s) relies on zeros where memory was given back, and memory that is a file gives its bytes back",
			       view->vmas[i].path);
}
