/*
 * Preloaded into the extractor by test/older-kernel.test.ts: answers as a kernel before Linux 6.7, which has no PAGEMAP_SCAN and no userfaultfd that
 * notes writes by itself. (A seccomp filter would do, but who has one may not suspend another's, as the extractor does.)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGEMAP_SCAN 0xc0606610
#define UFFDIO_API 0xc018aa3f

int ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	va_start(list, request);
	void *argument = va_arg(list, void *);
	va_end(list);
	if (request != PAGEMAP_SCAN && request != UFFDIO_API)
		return (int)syscall(SYS_ioctl, fd, request, argument);
	errno = request == PAGEMAP_SCAN ? ENOTTY : EINVAL;
	return -1;
}
