/*
 * Options of sockets (part of the extractor): those that are not as on a new socket.
 *
 * Some decide whether a clone can be made at all: two sockets share a port by SO_REUSEADDR or SO_REUSEPORT, or because one of them
 * is for IPv6 only, and a large buffer holds more unread bytes than a new socket takes.
 */
#include "extractor.h"
#include <linux/filter.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* The type of service sets a priority, so it comes first. */
static const struct {
	int domain, type, level, name;
} options[] = {
	{ AF_INET, 0, IPPROTO_IP, IP_TOS },
	{ AF_INET, 0, IPPROTO_IP, IP_TTL },
	{ AF_INET, 0, IPPROTO_IP, IP_PKTINFO },
	{ AF_INET, 0, IPPROTO_IP, IP_MTU_DISCOVER },
	{ AF_INET, 0, IPPROTO_IP, IP_RECVERR },
	{ AF_INET, 0, IPPROTO_IP, IP_MULTICAST_TTL },
	{ AF_INET, 0, IPPROTO_IP, IP_MULTICAST_LOOP },
	{ AF_INET, SOCK_DGRAM, IPPROTO_IP, IP_MULTICAST_IF },
	{ AF_INET, SOCK_DGRAM, IPPROTO_IP, IP_MULTICAST_ALL },
	{ AF_INET, SOCK_DGRAM, IPPROTO_IP, IP_RECVTOS },
	{ AF_INET, SOCK_DGRAM, IPPROTO_IP, IP_RECVTTL },
	{ AF_INET, SOCK_DGRAM, IPPROTO_IP, IP_FREEBIND },
	{ AF_INET6, 0, IPPROTO_IPV6, IPV6_V6ONLY },
	{ AF_INET6, 0, IPPROTO_IPV6, IPV6_TCLASS },
	{ AF_INET6, 0, IPPROTO_IPV6, IPV6_UNICAST_HOPS },
	{ AF_INET6, 0, IPPROTO_IPV6, IPV6_MULTICAST_HOPS },
	{ AF_INET6, 0, IPPROTO_IPV6, IPV6_MULTICAST_LOOP },
	{ AF_INET6, 0, IPPROTO_IPV6, IPV6_RECVPKTINFO },
	{ AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, IPV6_MULTICAST_IF },
	{ AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, IPV6_MTU_DISCOVER },
	{ AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, IPV6_DONTFRAG },
	{ AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, IPV6_RECVTCLASS },
	{ AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, IPV6_RECVHOPLIMIT },
	{ AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, IPV6_RECVERR },
	{ AF_INET, 0, SOL_SOCKET, SO_BINDTODEVICE },
	{ AF_INET6, 0, SOL_SOCKET, SO_BINDTODEVICE },
	{ 0, 0, SOL_SOCKET, SO_REUSEADDR },
	{ 0, 0, SOL_SOCKET, SO_REUSEPORT },
	{ 0, 0, SOL_SOCKET, SO_BROADCAST },
	{ 0, 0, SOL_SOCKET, SO_KEEPALIVE },
	{ 0, 0, SOL_SOCKET, SO_OOBINLINE },
	{ 0, 0, SOL_SOCKET, SO_PRIORITY },
	{ 0, 0, SOL_SOCKET, SO_LINGER },
	{ 0, 0, SOL_SOCKET, SO_RCVLOWAT },
	{ 0, 0, SOL_SOCKET, SO_RCVTIMEO },
	{ 0, 0, SOL_SOCKET, SO_SNDTIMEO },
	{ 0, 0, SOL_SOCKET, SO_SNDBUF },
	{ 0, 0, SOL_SOCKET, SO_RCVBUF },
	{ AF_UNIX, 0, SOL_SOCKET, SO_PASSCRED },
	{ 0, SOCK_DGRAM, SOL_SOCKET, SO_TIMESTAMP },
	{ 0, SOCK_DGRAM, SOL_SOCKET, SO_TIMESTAMPNS },
	{ 0, SOCK_DGRAM, SOL_SOCKET, SO_RXQ_OVFL },
	{ 0, SOCK_DGRAM, IPPROTO_UDP, UDP_SEGMENT },
	{ 0, SOCK_DGRAM, IPPROTO_UDP, UDP_GRO },
	{ 0, SOCK_STREAM, IPPROTO_TCP, TCP_NODELAY },
	{ 0, SOCK_STREAM, IPPROTO_TCP, TCP_KEEPIDLE },
	{ 0, SOCK_STREAM, IPPROTO_TCP, TCP_KEEPINTVL },
	{ 0, SOCK_STREAM, IPPROTO_TCP, TCP_KEEPCNT },
	{ 0, SOCK_STREAM, IPPROTO_TCP, TCP_USER_TIMEOUT },
	{ 0, SOCK_STREAM, IPPROTO_TCP, TCP_NOTSENT_LOWAT },
	{ 0, SOCK_STREAM, IPPROTO_TCP, TCP_CONGESTION },
};

static void write_option(int level, int name, const uint8_t *value, size_t bytes)
{
	json_open(NULL, '{');
	json_int("level", level);
	json_int("name", name);
	json_bytes("value", value, bytes);
	json_close('}');
}

/* A filter of packets: its instructions, in which the kernel counts the length. One of eBPF is not told. */
static void write_filter(int fd)
{
	static struct sock_filter program[BPF_MAXINSNS];
	socklen_t count = 0;
	if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &count) != 0 || count == 0 || count > BPF_MAXINSNS ||
	    getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, program, &count) != 0)
		return;
	write_option(SOL_SOCKET, SO_ATTACH_FILTER, (const uint8_t *)program, count * sizeof *program);
}

void write_socket_options(int fd, int domain, int type)
{
	int fresh = socket(domain, type | SOCK_CLOEXEC, 0), unread = 0;
	/* It is put back through a buffer that is enlarged for it, and needs its own size again. */
	bool large = domain == AF_UNIX && ioctl(fd, SIOCOUTQ, &unread) == 0 && unread > SOCKET_QUEUE_LARGE;
	json_open("options", '[');
	for (size_t i = 0; fresh >= 0 && i < sizeof options / sizeof *options; i++) {
		uint8_t value[16] = { 0 }, usual[16] = { 0 };
		socklen_t bytes = sizeof value, usual_bytes = sizeof usual;
		int level = options[i].level, name = options[i].name;
		if ((options[i].domain && options[i].domain != domain) || (options[i].type && options[i].type != type) ||
		    ((level == IPPROTO_TCP || level == IPPROTO_UDP) && domain == AF_UNIX))
			continue;
		if (getsockopt(fd, level, name, value, &bytes) != 0 || getsockopt(fresh, level, name, usual, &usual_bytes) != 0)
			continue;
		bool buffer = level == SOL_SOCKET && (name == SO_SNDBUF || name == SO_RCVBUF);
		if (memcmp(value, usual, sizeof value) == 0 && !(large && buffer && name == SO_SNDBUF))
			continue;
		if (buffer) { /* the kernel doubles what it is told */
			int size;
			memcpy(&size, value, sizeof size);
			size /= 2;
			memcpy(value, &size, sizeof size);
		}
		write_option(level, name, value, bytes);
	}
	write_filter(fd);
	json_close(']');
	if (fresh >= 0)
		close(fresh);
}
