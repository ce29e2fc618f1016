/*
 * What a process has mapped: /proc/PID/maps and smaps (part of the extractor).
 */
#include "memory.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VMAS_MAX 32768

void *grow(void *list, size_t count, size_t *room, size_t item)
{
	if (count < *room)
		return list;
	*room = *room ? *room * 2 : 16;
	list = realloc(list, *room * item);
	if (!list) {
		errno = ENOMEM;
		die("out of memory");
	}
	return list;
}

bool is_zero(const uint8_t *page)
{
	const uint64_t *words = (const uint64_t *)page;
	for (size_t i = 0; i < PAGE / 8; i += 8)
		if (words[i] | words[i + 1] | words[i + 2] | words[i + 3] | words[i + 4] | words[i + 5] | words[i + 6] | words[i + 7])
			return false;
	return true;
}

uint64_t rollup_anonymous(pid_t pid)
{
	char path[64], line[256];
	unsigned long kib = 0;
	snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
	FILE *file = fopen(path, "re");
	if (!file)
		die("cannot read %s: %s", path, strerror(errno));
	while (fgets(line, sizeof line, file))
		if (sscanf(line, "Anonymous: %lu", &kib) == 1)
			break;
	fclose(file);
	return kib * 1024ULL;
}

char *read_maps(pid_t pid)
{
	char path[64];
	static size_t room = 1 << 16;
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *text = malloc(room);
	size_t used = 0;
	for (ssize_t got = 1; fd >= 0 && text && got > 0; used += (size_t)got) {
		if (room - used < 8192)
			text = realloc(text, room *= 2);
		got = text ? read(fd, text + used, room - used - 1) : -1;
		if (got < 0)
			die("cannot read %s: %s", path, strerror(errno));
	}
	if (fd < 0 || !text)
		die("cannot read %s: %s", path, strerror(errno));
	close(fd);
	text[used] = 0;
	return text;
}

/* What is read of a mapping, but for smaps' own words; false: it is none, or not counted. */
static bool parse_mapping(const char *line, struct vma *vma, int *name_at)
{
	char perms[8];
	*name_at = 0;
	memset(vma, 0, sizeof *vma);
	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %x:%x %" SCNu64 " %n", &vma->start, &vma->end, perms, &vma->offset,
		   &vma->major, &vma->minor, &vma->inode, name_at) < 7 || *name_at == 0)
		return false;
	vma->prot = (perms[0] == 'r' ? 1 : 0) | (perms[1] == 'w' ? 2 : 0) | (perms[2] == 'x' ? 4 : 0);
	vma->shared = perms[3] == 's';
	return true;
}

static bool passed_over(const struct vma *vma, const char *name)
{
	return (vma->start >= HUSK_ZONE_START && vma->start < HUSK_ZONE_END) || strncmp(name, "[vsyscall]", 10) == 0;
}

bool vmas_hold(const struct vma *vmas, size_t count, const char *then, const char *maps)
{
	size_t i = 0;
	if (strcmp(then, maps) != 0)
		return false;
	for (const char *line = maps; *line; line = strchr(line, '\n') + 1) {
		struct vma now;
		int name_at;
		if (!parse_mapping(line, &now, &name_at) || passed_over(&now, line + name_at))
			continue;
		const struct vma *vma = &vmas[i];
		if (i++ == count || vma->start != now.start || vma->end != now.end || vma->prot != now.prot || vma->shared != now.shared ||
		    vma->inode != now.inode || vma->major != now.major || vma->minor != now.minor || (now.inode != 0 && vma->offset != now.offset))
			return false;
	}
	return i == count;
}

size_t read_vmas(pid_t pid, struct vma **list, enum vma_flags flags)
{
	/* locked, huge pages, sealed, device, dropped by the kernel as it likes */
	static const char *const fixed[] = { " lo", " ht", " sl", " pf", " io", " dp" };
	char path[64], *line = NULL;
	size_t line_room = 0, count = 0, room = 0;
	snprintf(path, sizeof path, "/proc/%d/%s", pid, flags == VMAS_PLAIN ? "maps" : "smaps");
	FILE *file = fopen(path, "re");
	if (!file)
		die("cannot read %s: %s", path, strerror(errno));
	struct vma *vmas = NULL, *current = NULL;
	while (getline(&line, &line_room, file) > 0) {
		struct vma vma;
		int name_at;
		if (parse_mapping(line, &vma, &name_at)) {
			line[strcspn(line, "\n")] = 0;
			current = NULL;
			const char *name = line + name_at;
			if (passed_over(&vma, name))
				continue;
			/* One that grows between two reads of the file is told again, from its beginning. */
			uint64_t told = count ? vmas[count - 1].end : 0;
			if (vma.end <= told)
				continue;
			if (vma.start < told) {
				vma.offset += told - vma.start;
				vma.start = told;
			}
			if (count == VMAS_MAX)
				refuse("it has more than %d mappings", VMAS_MAX);
			vmas = grow(vmas, count, &room, sizeof *vmas);
			current = &vmas[count++];
			*current = vma;
			current->path = strdup(name);
			if (!current->path)
				die("out of memory");
			if (strncmp(name, "[vvar", 5) == 0 || strcmp(name, "[vdso]") == 0)
				current->kind = VDSO;
			else if (strcmp(name, "[heap]") == 0)
				current->kind = HEAP;
			else if (current->inode != 0)
				current->kind = current->shared ? FILE_SHARED : FILE_PRIVATE;
			else
				current->kind = ANON;
		} else if (current && strncmp(line, "VmFlags:", 8) == 0) {
			bool writable_ever = strstr(line, " mw") != NULL;
			if (strstr(line, " gd"))
				current->kind = STACK;
			current->wipe = strstr(line, " wf") != NULL;
			for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++)
				current->stays |= strstr(line, fixed[i]) != NULL;
			current->watched = strstr(line, " um") || strstr(line, " uw") || strstr(line, " ui");
			if (flags < VMAS_REFUSING)
				continue;
			current->writes = writable_ever;
			if (current->shared && (writable_ever || current->inode == 0))
				current->kind = COMMON;
			if (strstr(line, " pf") || strstr(line, " io"))
				if (current->kind != VDSO)
					refuse("it maps a device (%s)", current->path);
			if (current->watched && flags != VMAS_REFUSING_OTHERS)
				refuse("it uses userfaultfd");
			if (strstr(line, " ss"))
				refuse("it uses a shadow stack");
		} else if (current && strncmp(line, "ProtectionKey:", 14) == 0 && strtol(line + 14, NULL, 10) != 0) {
			if (flags >= VMAS_REFUSING)
				refuse("it maps memory with a protection key");
			current->stays = true;
		}
	}
	fclose(file);
	free(line);
	if (flags >= VMAS_REFUSING)
		settle_shared(pid, vmas, count);
	*list = vmas;
	return count;
}
