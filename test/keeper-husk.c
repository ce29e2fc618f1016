/*
 * A husk for the keeper's tests: the first bytes of a "program" say what to do.
 *   t  move the first passed tree onto /var/task, report the errno
 *   l  hold the first passed descriptors as 3 (control), 1 and 2 (log), report, then serve:
 *      each message on the control socket is a shell command; its output goes to the log, its status back
 *   n  report only
 *   x  die without a report
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "abi.h"

static void serve(void) {
	static char text[1 << 16];
	for (;;) {
		ssize_t count = read(3, text, sizeof text - 1);
		if (count <= 0) _exit(0);
		text[count] = '\0';
		if (strncmp(text, "exit ", 5) == 0) _exit(atoi(text + 5));
		if (strncmp(text, "big ", 4) == 0) {
			size_t bytes = strtoul(text + 4, NULL, 10);
			char *big = malloc(bytes);
			memset(big, 'b', bytes);
			for (size_t done = 0; done < bytes;) done += (size_t)write(3, big + done, bytes - done);
			continue;
		}
		if (strncmp(text, "eat ", 4) == 0) {
			size_t bytes = strtoul(text + 4, NULL, 10);
			memset(malloc(bytes), 1, bytes);
			continue;
		}
		int status = system(text);
		fflush(stdout);
		dprintf(3, "%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
	}
}

int main(void) {
	for (;;) {
		struct husk_run run;
		struct iovec part = {&run, sizeof run};
		union { struct cmsghdr align; char room[CMSG_SPACE(sizeof(int) * HUSK_FDS_MAX)]; } control;
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
		if (recvmsg(HUSK_CHANNEL_FD, &message, MSG_CMSG_CLOEXEC) != sizeof run || run.magic != HUSK_RUN_MAGIC) return 1;
		int fds[HUSK_FDS_MAX] = {0};
		struct cmsghdr *head = CMSG_FIRSTHDR(&message);
		memcpy(fds, CMSG_DATA(head), head->cmsg_len - CMSG_LEN(0));
		char what = 0;
		if (pread(fds[0], &what, 1, 0) != 1) return 1;
		struct husk_report report = {.magic = HUSK_REPORT_MAGIC, .failed_op = run.fd_count};
		report.stamps[0] = run.program_bytes;
		if (what == 'x') return 9;
		if (what == 't' && syscall(SYS_move_mount, fds[1], "", -100, "/var/task", 4) != 0) report.status = -errno;
		if (what == 'l') {
			dup2(fds[1], 3);
			dup2(fds[2], 1);
			dup2(fds[2], 2);
		}
		send(HUSK_CHANNEL_FD, &report, sizeof report, 0);
		for (unsigned index = 0; index <= run.fd_count; index++) if (fds[index] != 3) close(fds[index]);
		if (what != 'l') continue;
		close(HUSK_CHANNEL_FD);
		serve();
	}
}
