/*
 * Mounts a file system at the directory that it is given, whose every question goes unanswered until standard input ends: whoever opens something there waits as
 * long. "mounted" says that it is.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <unistd.h>

int main(int argc, char **argv) {
	char options[128], end;
	int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
	if (argc < 2 || mount("silent", argv[1], "fuse", 0, options) != 0) return perror("cannot mount it"), 1;
	puts("mounted");
	fflush(stdout);
	while (read(0, &end, 1) > 0) {}
	close(fuse);
	return umount2(argv[1], MNT_DETACH) == 0 ? 0 : (perror("cannot unmount it"), 1);
}
