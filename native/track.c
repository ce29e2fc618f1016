/*
 * Write tracking (part of the extractor): userfaultfd with WP_ASYNC, and PAGEMAP_SCAN from outside (Linux 6.7). Before it: soft-dirty bits.
 *
 * A userfaultfd belongs to the memory of who made it, so the process makes it, by injection, and it is taken over with
 * pidfd_getfd. Registered mappings get write protection page by page; the first write to a page costs its writer 1.6 us and is
 * noted in the page table, where a scan finds it. Mappings made later are not registered: all their pages count as written, and so
 * does memory that was moved or mapped anew. Should we die, the kernel closes the descriptor and takes all protection away.
 *
 * Soft-dirty bits (CONFIG_MEM_SOFT_DIRTY, Documentation/admin-guide/mm/soft-dirty.rst) are cleared in all of a process at once, and cannot be read and
 * cleared in one step: what is written between the two would be lost. So they are cleared once, before anything is copied, and what has one at the
 * stop is copied again. Mappings made later have it on all of their pages.
 */
#include "track.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SCAN_WP_MATCHING (1 << 0)
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
/* Not in the headers of older distributions. */
#define USERFAULTFD_IOC_NEW_ _IO(0xAA, 0x00)
#define WP_ASYNC (1ULL << 15) /* UFFD_FEATURE_WP_ASYNC */

int take_descriptor(pid_t pid, int theirs)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	int fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, theirs, 0);
	int error = errno;
	if (pidfd >= 0)
		close(pidfd);
	errno = error;
	return fd;
}

int track_make(struct target *target, uint64_t features)
{
	struct thread *main_thread = &target->threads[0];
	long made = inject(target, main_thread, SYS_userfaultfd, (uint64_t[6]){ O_CLOEXEC | UFFD_USER_MODE_ONLY, 0, 0, 0, 0, 0 });
	if (made < 0)
		refuse("writes to its memory cannot be noted (userfaultfd: %s)", strerror((int)-made));
	int uffd = take_descriptor(target->pid, (int)made);
	int error = errno;
	inject(target, main_thread, SYS_close, (uint64_t[6]){ (uint64_t)made, 0, 0, 0, 0, 0 });
	if (uffd < 0)
		die("cannot take over a descriptor: %s", strerror(error));
	struct uffdio_api api = { .api = UFFD_API, .features = WP_ASYNC | features };
	if (ioctl(uffd, UFFDIO_API, &api) != 0)
		die("cannot note writes: %s (UFFD_FEATURE_WP_ASYNC needs Linux 6.7)", strerror(errno));
	return uffd;
}

/*
 * Whether it has bits that are cleared when they shall be, and set by a write: kernels without them take the order to clear as well. Not where there is
 * PAGEMAP_SCAN, which does not look at them: a kernel that was built without userfaultfd.
 */
static bool has_soft_dirty(void)
{
	static int known = -1;
	volatile char *page;
	if (known >= 0)
		return known;
	known = 0;
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	bool scanned = pagemap < 0 || has_scan(pagemap);
	if (pagemap >= 0)
		close(pagemap);
	if (scanned)
		return known;
	int clear = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (clear >= 0 && page != MAP_FAILED) {
		*page = 1;
		bool was = write(clear, "4", 1) == 1 && !(own_entry((const void *)page) & ENTRY_SOFT_DIRTY);
		*page = 2;
		known = was && (own_entry((const void *)page) & ENTRY_SOFT_DIRTY);
	}
	if (page != MAP_FAILED)
		munmap((void *)page, PAGE);
	if (clear >= 0)
		close(clear);
	return known;
}

enum tracking track_begin(struct target *target, int *uffd)
{
	const char *why;
	enum tracking how = tracking_known(&why);
	*uffd = -1;
	if (how == TRACKED_AGAIN)
		*uffd = track_make(target, 0);
	if (how != TRACKED_ONCE)
		return how;
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/clear_refs", target->pid);
	int clear = open(path, O_WRONLY | O_CLOEXEC);
	if (clear < 0 || write(clear, "4", 1) != 1)
		die("cannot note writes: %s: %s", path, strerror(errno));
	close(clear);
	scan_soft_dirty();
	return how;
}

bool track_mapping(int uffd, const struct vma *vma)
{
	if (uffd < 0)
		return true;
	struct uffdio_register all = { .range = { vma->start, vma->end - vma->start }, .mode = UFFDIO_REGISTER_MODE_WP };
	return ioctl(uffd, UFFDIO_REGISTER, &all) == 0;
}

void track_no_more(int uffd, const struct vma *vma)
{
	struct uffdio_range all = { vma->start, vma->end - vma->start };
	if (uffd >= 0)
		(void)!ioctl(uffd, UFFDIO_UNREGISTER, &all);
}

void track_written(int pagemap, const struct vma *vma, bool all, void (*each)(void *context, const struct scan_region *range), void *context)
{
	const struct scan_arg written = { .flags = SCAN_WP_MATCHING, .category_inverted = IS_FILE | IS_ZERO,
					  .category_mask = IS_FILE | IS_ZERO | IS_PRESENT | (all ? 0 : IS_WRITTEN), .return_mask = IS_PRESENT };
	scan(pagemap, vma->start, vma->end, written, each, context);
}

/* What this kernel lacks, given a userfaultfd; -1: it could not be made. Closes it. */
static const char *lacks(int uffd)
{
	struct uffdio_api api = { .api = UFFD_API, .features = WP_UNPOPULATED | WP_ASYNC };
	if (uffd < 0)
		return "cannot make a userfaultfd";
	bool able = ioctl(uffd, UFFDIO_API, &api) == 0;
	int error = errno;
	close(uffd);
	errno = error;
	return able ? NULL : "userfaultfd has no asynchronous write protection, which came with Linux 6.7";
}

enum tracking tracking_known(const char **why)
{
	*why = lacks((int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
	if (!*why)
		return TRACKED_AGAIN;
	int error = errno;
	bool once = has_soft_dirty();
	errno = error;
	return once ? TRACKED_ONCE : TRACKED_NOT;
}

int try_tracking(void)
{
	static const char *const writes[] = { [TRACKED_NOT] = "no", [TRACKED_ONCE] = "once", [TRACKED_AGAIN] = "again" };
	const char *why;
	const char *noted = writes[tracking_known(&why)];
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), made = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW_, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	bool served = made >= 0;
	why = device < 0 ? "cannot open /dev/userfaultfd" : lacks(made);
	if (why)
		printf("{\"ok\":false,\"code\":\"unsupported\",\"why\":\"%s: %s\"", why, strerror(errno));
	else
		printf("{\"ok\":true");
	printf(",\"served\":%s,\"writes\":\"%s\"}\n", served ? "true" : "false", noted);
	return 0;
}
