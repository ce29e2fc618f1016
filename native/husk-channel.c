/*
 * The husk's channel to the keeper (part of the husk): runs come in, reports and descriptors go out.
 */
#include <linux/time_types.h>
#include "husk.h"

#define CLOCK_MONOTONIC_ 1
#define SOL_SOCKET_ 1
#define SCM_RIGHTS_ 1
#define MSG_NOSIGNAL_ 0x4000
#define MSG_CMSG_CLOEXEC_ 0x40000000

static struct husk_report report;
static long channel = HUSK_CHANNEL_FD;

static uint64_t now_ns(void)
{
	struct __kernel_timespec now = { 0, 0 };
	raw(__NR_clock_gettime, CLOCK_MONOTONIC_, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

void stamp(uint64_t index)
{
	report.stamps[index & (HUSK_STAMPS - 1)] = now_ns();
}

void begin_report(void)
{
	memset(&report, 0, sizeof report);
	stamp(0);
}

void send_report(long status, uint32_t op)
{
	report.magic = HUSK_REPORT_MAGIC;
	report.status = (int32_t)status;
	report.failed_op = op;
	raw(__NR_sendto, channel, &report, sizeof report, MSG_NOSIGNAL_, 0, 0);
}

_Noreturn void give_up(long status, uint32_t op)
{
	send_report(status, op);
	for (;;)
		raw(__NR_exit_group, 113);
}

struct io_vector {
	void *base;
	uint64_t bytes;
};
struct message_header {
	void *name;
	uint32_t name_bytes, pad1;
	struct io_vector *vectors;
	uint64_t vector_count;
	void *control;
	uint64_t control_bytes;
	int32_t flags, pad2;
};
struct control_message {
	uint64_t bytes;
	int32_t level, type;
	int32_t fds[HUSK_FDS_MAX + 1];
	int32_t pad;
};
/* cmsg_len of so many descriptors: a header of 16 bytes, then the descriptors. */
#define CONTROL_BYTES(count) (16 + (uint64_t)(count) * sizeof(int32_t))

/* Sends a descriptor to the keeper and closes it here: what shall outlive this husk's own code stays nowhere in the function. */
long give(long fd, uint64_t kind)
{
	struct husk_gift gift = { HUSK_GIFT_MAGIC, (uint32_t)kind };
	struct io_vector vector = { &gift, sizeof gift };
	struct control_message control = { CONTROL_BYTES(1), SOL_SOCKET_, SCM_RIGHTS_, { (int32_t)fd }, 0 };
	struct message_header header = { 0, 0, 0, &vector, 1, &control, CONTROL_BYTES(1), 0, 0 };
	long sent = raw(__NR_sendmsg, channel, &header, MSG_NOSIGNAL_);
	if (failed(sent))
		return sent;
	return raw(__NR_close, fd);
}

long keep_above(long fd, long base)
{
	if (fd >= base)
		return fd;
	long moved = raw(__NR_fcntl, fd, F_DUPFD_CLOEXEC_, base);
	if (failed(moved))
		give_up(moved, 0);
	raw(__NR_close, fd);
	return moved;
}

long receive_run(struct husk_run *run, uint64_t *fds)
{
	static struct control_message control;
	struct io_vector vector = { run, sizeof *run };
	struct message_header header = { 0, 0, 0, &vector, 1, &control, sizeof control, 0, 0 };
	long got = raw(__NR_recvmsg, channel, &header, MSG_CMSG_CLOEXEC_);
	if (got == 0) /* the keeper let this husk go */
		for (;;)
			raw(__NR_exit_group, 0);
	if (failed(got))
		give_up(got, 0);
	if (got != sizeof *run || run->magic != HUSK_RUN_MAGIC || run->fd_count > HUSK_FDS_MAX)
		give_up(-EPROTO_, 0);
	uint64_t count = (control.bytes - 16) / sizeof(int32_t);
	if (header.control_bytes == 0 || control.level != SOL_SOCKET_ || control.type != SCM_RIGHTS_ || count != run->fd_count + 1ULL)
		give_up(-EPROTO_, 0);
	channel = keep_above(channel, run->fd_base);
	for (uint64_t i = 1; i < count; i++)
		fds[i - 1] = (uint64_t)keep_above(control.fds[i], run->fd_base);
	return control.fds[0];
}
