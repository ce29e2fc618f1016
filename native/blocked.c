/*
 * How long a process waited for the disk.
 *
 *   extractor blocked PID    prints the time that all its threads, ended ones too, waited for block devices since it began
 *
 * Theory of operation. Delay accounting (Documentation/accounting/delay-accounting.rst) is what counts this; it must be on
 * (sysctl kernel.task_delayacct) when the process is made, else the count is zero, and cannot be told from no waiting. /proc/PID/stat
 * shows it in hundredths of a second, which is longer than a whole start, so the taskstats family of generic netlink is asked,
 * which answers in nanoseconds.
 */
#include "extractor.h"
#include <errno.h>
#include <inttypes.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/taskstats.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct request {
	struct nlmsghdr head;
	struct genlmsghdr command;
	uint8_t attributes[64];
};

static const struct nlattr *find(const uint8_t *at, size_t bytes, int type)
{
	while (bytes >= NLA_HDRLEN) {
		const struct nlattr *attribute = (const void *)at;
		size_t step = NLA_ALIGN(attribute->nla_len);
		if (attribute->nla_len < NLA_HDRLEN || step > bytes)
			return NULL;
		if ((attribute->nla_type & NLA_TYPE_MASK) == type)
			return attribute;
		at += step;
		bytes -= step;
	}
	return NULL;
}

/* Sends one request with one attribute; the answer's attributes are in `answer`, and their number of bytes is returned. */
static size_t ask(int fd, uint16_t family, uint8_t command, uint16_t type, const void *value, size_t bytes, uint8_t *answer,
		  size_t answer_bytes, const uint8_t **attributes)
{
	struct request request = { .head.nlmsg_type = family, .head.nlmsg_flags = NLM_F_REQUEST, .command.cmd = command, .command.version = 1 };
	struct nlattr *attribute = (void *)request.attributes;
	attribute->nla_type = type;
	attribute->nla_len = (uint16_t)(NLA_HDRLEN + bytes);
	memcpy(request.attributes + NLA_HDRLEN, value, bytes);
	request.head.nlmsg_len = (uint32_t)(NLMSG_LENGTH(GENL_HDRLEN) + NLA_ALIGN(attribute->nla_len));
	if (send(fd, &request, request.head.nlmsg_len, 0) < 0)
		die("cannot ask for statistics of tasks: %s", strerror(errno));
	ssize_t got = recv(fd, answer, answer_bytes, 0);
	const struct nlmsghdr *head = (const void *)answer;
	if (got < (ssize_t)NLMSG_LENGTH(GENL_HDRLEN) || head->nlmsg_len > (size_t)got)
		die("the statistics of tasks cannot be read");
	if (head->nlmsg_type == NLMSG_ERROR)
		die("the kernel has no statistics of this task: %s", strerror(-((const struct nlmsgerr *)NLMSG_DATA(head))->error));
	*attributes = answer + NLMSG_LENGTH(GENL_HDRLEN);
	return head->nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN);
}

int print_blocked(pid_t pid)
{
	static uint8_t answer[8192] __attribute__((aligned(8)));
	const uint8_t *attributes;
	uint32_t tgid = (uint32_t)pid;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	if (fd < 0)
		die("no generic netlink: %s", strerror(errno));
	size_t bytes = ask(fd, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, TASKSTATS_GENL_NAME,
			   sizeof TASKSTATS_GENL_NAME, answer, sizeof answer, &attributes);
	const struct nlattr *family = find(attributes, bytes, CTRL_ATTR_FAMILY_ID);
	if (!family)
		die("this kernel has no taskstats");
	uint16_t id;
	memcpy(&id, (const uint8_t *)family + NLA_HDRLEN, sizeof id);
	bytes = ask(fd, id, TASKSTATS_CMD_GET, TASKSTATS_CMD_ATTR_TGID, &tgid, sizeof tgid, answer, sizeof answer, &attributes);
	const struct nlattr *both = find(attributes, bytes, TASKSTATS_TYPE_AGGR_TGID);
	const struct nlattr *stats = both ? find((const uint8_t *)both + NLA_HDRLEN, both->nla_len - NLA_HDRLEN, TASKSTATS_TYPE_STATS) : NULL;
	if (!stats || stats->nla_len < NLA_HDRLEN + offsetof(struct taskstats, swapin_count))
		die("the kernel's statistics of this task are of a shape that is not known");
	struct taskstats is = { 0 };
	size_t known = stats->nla_len - NLA_HDRLEN;
	memcpy(&is, (const uint8_t *)stats + NLA_HDRLEN, known < sizeof is ? known : sizeof is);
	printf("{\"ok\":true,\"ns\":%" PRIu64 ",\"times\":%" PRIu64 "}\n", (uint64_t)is.blkio_delay_total, (uint64_t)is.blkio_count);
	close(fd);
	return 0;
}
