/*
 * Descriptors that are sockets (part of the extractor).
 *
 * Which unix socket leads to which is known to the kernel alone (sock_diag in the function's network namespace): a pair of which both ends are the
 * process's own comes back as a pair, with what lies unread in it.
 */
#include "descriptors.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SOCKETS_MAX 1024

static struct {
	uint32_t inode, peer;
	uint8_t shut; /* for reading (1), for writing (2) */
} sockets[SOCKETS_MAX];
static int socket_count = -1;

static void find_sockets(void)
{
	socket_count = 0;
	int home = enter_namespace("net", CLONE_NEWNET);
	int diag = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	int result = leave_namespace(home, CLONE_NEWNET);
	struct {
		struct nlmsghdr header;
		struct unix_diag_req request;
	} ask = { .header = { .nlmsg_len = sizeof ask, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP },
		  .request = { .sdiag_family = AF_UNIX, .udiag_states = UINT32_MAX, .udiag_show = UDIAG_SHOW_PEER } };
	if (diag < 0 || result != 0 || send(diag, &ask, sizeof ask, 0) != sizeof ask)
		die("cannot ask for unix sockets: %s (a kernel without CONFIG_UNIX_DIAG?)", strerror(errno));
	static char answer[65536] __attribute__((aligned(8)));
	for (bool more = true; more;) {
		ssize_t got = recv(diag, answer, sizeof answer, 0);
		if (got <= 0)
			die("cannot read the list of unix sockets: %s", strerror(errno));
		int left = (int)got;
		for (struct nlmsghdr *h = (struct nlmsghdr *)answer; NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
			if (h->nlmsg_type == NLMSG_ERROR) {
				errno = -((const struct nlmsgerr *)NLMSG_DATA(h))->error;
				die("the kernel does not list unix sockets: %s (a kernel without CONFIG_UNIX_DIAG?)", strerror(errno));
			}
			if (h->nlmsg_type == NLMSG_DONE) {
				more = false;
				break;
			}
			struct unix_diag_msg *message = NLMSG_DATA(h);
			if (socket_count == SOCKETS_MAX)
				refuse("more than %d unix sockets", SOCKETS_MAX);
			sockets[socket_count].inode = message->udiag_ino;
			sockets[socket_count].peer = sockets[socket_count].shut = 0;
			int rest = (int)(h->nlmsg_len - NLMSG_LENGTH(sizeof *message));
			for (struct rtattr *a = (struct rtattr *)(message + 1); RTA_OK(a, rest); a = RTA_NEXT(a, rest)) {
				if (a->rta_type == UNIX_DIAG_PEER)
					sockets[socket_count].peer = *(uint32_t *)RTA_DATA(a);
				if (a->rta_type == UNIX_DIAG_SHUTDOWN)
					sockets[socket_count].shut = *(uint8_t *)RTA_DATA(a);
			}
			socket_count++;
		}
	}
	close(diag);
}

static int socket_option(int fd, int option)
{
	int value = 0;
	socklen_t bytes = sizeof value;
	if (getsockopt(fd, SOL_SOCKET, option, &value, &bytes) != 0)
		die("getsockopt: %s", strerror(errno));
	return value;
}

static void write_unix(const struct descriptor *d, int type)
{
	if (socket_option(d->mine, SO_ACCEPTCONN))
		refuse("it listens on a unix socket (descriptor %d)", d->fd);
	if (socket_count < 0)
		find_sockets();
	uint32_t peer = 0;
	uint8_t shut = 0;
	for (int i = 0; i < socket_count; i++) {
		if (sockets[i].inode != d->is.st_ino)
			continue;
		peer = sockets[i].peer;
		shut = sockets[i].shut;
	}
	bool peer_is_here = false;
	for (int i = 0; i < descriptor_count; i++)
		peer_is_here |= peer != 0 && descriptors[i].is.st_ino == peer && S_ISSOCK(descriptors[i].is.st_mode);
	struct sockaddr_un local, remote;
	socklen_t local_bytes = sizeof local, remote_bytes = sizeof remote;
	bool idle = getpeername(d->mine, (struct sockaddr *)&remote, &remote_bytes) != 0;
	if ((idle || type == SOCK_DGRAM) && getsockname(d->mine, (struct sockaddr *)&local, &local_bytes) == 0 &&
	    local_bytes > sizeof local.sun_family)
		refuse("it holds a unix socket that is bound to a name (descriptor %d)", d->fd);
	if (info_number(d, "scm_fds: ", 10) > 0)
		refuse("descriptors that were passed lie unread in a unix socket (descriptor %d)", d->fd);
	static uint8_t bytes[QUEUE_BYTES_MAX];
	/* To look would move it on. */
	if (socket_option(d->mine, SO_PEEK_OFF) >= 0)
		refuse("it looks ahead in a unix socket by an offset (SO_PEEK_OFF, descriptor %d)", d->fd);
	/* Whose other end is closed has nothing to read all the same, or what FIONREAD tells. */
	int unread = 0;
	if (type != SOCK_STREAM && recv(d->mine, bytes, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 &&
	    (peer_is_here || ioctl(d->mine, FIONREAD, &unread) != 0 || unread > 0))
		refuse("unread datagrams lie in a unix socket (descriptor %d)", d->fd);
	ssize_t got = type == SOCK_STREAM ? recv(d->mine, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT) : 0;
	if (type == SOCK_STREAM)
		refuse_rest(d, got > 0 ? (size_t)got : 0, "a unix socket",
			    "bytes out of band lie unread in a unix socket");
	json_string("kind", "unix");
	json_int("type", type);
	json_int("inode", (int64_t)d->is.st_ino);
	json_int("peer", peer_is_here ? peer : 0);
	json_bytes("bytes", bytes, got > 0 ? (size_t)got : 0);
	write_socket_options(d->mine, AF_UNIX, type);
	if (idle)
		json_int("idle", 1);
	/* The other end hears of it, but of datagrams, where each end is shut by itself. */
	if (type == SOCK_DGRAM && shut)
		json_int("shut", shut);
	else if (type != SOCK_DGRAM && (events_of(d) & POLLRDHUP))
		json_int("readShut", 1);
	if (peer && !peer_is_here)
		note("a unix socket to another process (descriptor %d) will be seen as closed", d->fd);
}

static void address_text(const struct sockaddr_storage *address, char *text, size_t room)
{
	char ip[INET6_ADDRSTRLEN] = "?";
	uint16_t port = 0;
	if (address->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)address;
		inet_ntop(AF_INET, &in->sin_addr, ip, sizeof ip);
		port = ntohs(in->sin_port);
	} else if (address->ss_family == AF_INET6) {
		const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)address;
		inet_ntop(AF_INET6, &in->sin6_addr, ip, sizeof ip);
		port = ntohs(in->sin6_port);
	}
	snprintf(text, room, "%s:%u", ip, port);
}

static void write_inet(const struct descriptor *d, int domain, int type)
{
	struct sockaddr_storage local = { 0 }, remote = { 0 };
	socklen_t local_bytes = sizeof local, remote_bytes = sizeof remote;
	char from[80], to[80];
	getsockname(d->mine, (struct sockaddr *)&local, &local_bytes);
	bool connected = getpeername(d->mine, (struct sockaddr *)&remote, &remote_bytes) == 0;
	address_text(&local, from, sizeof from);
	address_text(&remote, to, sizeof to);
	if (type == SOCK_STREAM && socket_option(d->mine, SO_ACCEPTCONN))
		refuse("it listens on TCP %s (descriptor %d)", from, d->fd);
	if (type != SOCK_STREAM && type != SOCK_DGRAM)
		refuse("it holds a raw network socket (descriptor %d)", d->fd);
	if (type == SOCK_DGRAM && (events_of(d) & (POLLIN | POLLRDHUP)) == POLLIN)
		refuse("unread datagrams lie in a UDP socket on %s (descriptor %d)", from, d->fd);
	struct tcp_info info = { 0 };
	socklen_t info_bytes = sizeof info;
	bool open_connection = false;
	if (type == SOCK_STREAM && getsockopt(d->mine, IPPROTO_TCP, TCP_INFO, &info, &info_bytes) == 0)
		open_connection = info.tcpi_state != TCP_CLOSE;
	/* A socket that never was connected is not at its end; one that was, and is closed by now, is. */
	bool over = type == SOCK_STREAM && !open_connection && (events_of(d) & POLLRDHUP);
	json_string("kind", "inet");
	json_int("domain", domain);
	json_int("type", type);
	json_string("state", type == SOCK_STREAM ? (open_connection || over ? "connection" : "idle") : "datagram");
	json_bytes("local", &local, local_bytes);
	write_socket_options(d->mine, domain, type);
	if (connected && type == SOCK_DGRAM)
		json_bytes("remote", &remote, remote_bytes);
	if (type == SOCK_DGRAM && (events_of(d) & POLLRDHUP))
		json_int("shut", events_of(d) & POLLHUP ? 3 : 1);
	if (open_connection)
		note("TCP connection %s → %s (descriptor %d) will be seen as reset", from, connected ? to : "?", d->fd);
}

void write_socket(const struct descriptor *d)
{
	int domain = socket_option(d->mine, SO_DOMAIN), type = socket_option(d->mine, SO_TYPE);
	if (domain == AF_UNIX)
		write_unix(d, type);
	else if (domain == AF_INET || domain == AF_INET6)
		write_inet(d, domain, type);
	else
		refuse("it holds a socket of address family %d (descriptor %d)", domain, d->fd);
}
