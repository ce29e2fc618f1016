/*
 * Writes a byte into the pipe that it is given, from a page that is not there until standard input ends: the kernel's lock of that pipe is held as long,
 * as by a function that lets its own thread starve in a write. "held" says that it is.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *page;

static void *write_it(void *fd) {
	if (write((int)(intptr_t)fd, page, 1) != 1) perror("write");
	return NULL;
}

int main(int argc, char **argv) {
	int fd = argc > 1 ? open(argv[1], O_WRONLY) : -1, uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = {.api = UFFD_API};
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register registered = {.range = {(uintptr_t)page, 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (fd < 0 || page == MAP_FAILED || ioctl(uffd, UFFDIO_API, &api) != 0 || ioctl(uffd, UFFDIO_REGISTER, &registered) != 0) return perror("cannot hold it"), 1;
	pthread_t thread;
	pthread_create(&thread, NULL, write_it, (void *)(intptr_t)fd);
	struct uffd_msg message;
	if (read(uffd, &message, sizeof message) != sizeof message) return perror("no fault"), 1;
	puts("held");
	fflush(stdout);
	char end;
	while (read(0, &end, 1) > 0) {}
	ioctl(uffd, UFFDIO_ZEROPAGE, &(struct uffdio_zeropage){.range = registered.range});
	pthread_join(thread, NULL);
	return 0;
}
