/* Packet sockets: bound to an interface with a filter and options; and one that is not bound. A message
 * waits that stays with the parent. */
#include "conform.h"
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

static int fd, idle, sender, port = 7777;

/* UDP to a port: with SOCK_DGRAM the IP header comes first. */
static const char *filter_for(int wanted) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 9),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 3),
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 22),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)wanted, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0xffff),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {.len = 6, .filter = code};
    EXPECT(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    port = wanted;
    return NULL;
}

static const char *udp_to(int to, const char *text) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)to)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ssize_t sent = sendto(sender, text, strlen(text), 0, (struct sockaddr *)&at, sizeof at);
    EXPECT(sent == (ssize_t)strlen(text) || errno == ECONNREFUSED);
    return NULL;
}

static const char *setup(void) {
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP)};
    int one = 1;
    at.sll_ifindex = (int)if_nametoindex("lo");
    fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    idle = socket(AF_PACKET, SOCK_RAW, 0);
    sender = socket(AF_INET, SOCK_DGRAM, 0);
    EXPECT(fd >= 0 && idle >= 0 && sender >= 0 && at.sll_ifindex > 0);
    EXPECT(setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one) == 0);
    EXPECT(setsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &one, sizeof one) == 0);
    TRY(filter_for(7777));
    EXPECT(bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
    return udp_to(7777, "waits");
}

static const char *next(const char *text) {
    char got[256];
    EXPECT(comes(fd));
    ssize_t len = recv(fd, got, sizeof got, 0), wanted = (ssize_t)strlen(text);
    EXPECT(len == 28 + wanted && memcmp(got + 28, text, (size_t)wanted) == 0);
    return NULL;
}

static int begun;

static const char *holds(int wanted) {
    struct sockaddr_ll at;
    socklen_t len = sizeof at;
    int on = 0;
    EXPECT(port == wanted && is_cloexec(fd) && (flags_of(fd) & O_NONBLOCK));
    if (is_parent() && begun++ == 0) TRY(next("waits"));
    TRY(udp_to(7770, "other"));
    TRY(udp_to(port, "hello"));
    TRY(next("hello"));
    EXPECT(!readable(fd) && !readable(idle));
    EXPECT(getsockname(fd, (struct sockaddr *)&at, &len) == 0);
    EXPECT(at.sll_protocol == htons(ETH_P_IP) && at.sll_ifindex == (int)if_nametoindex("lo"));
    len = sizeof on;
    EXPECT(getsockopt(fd, SOL_PACKET, PACKET_AUXDATA, &on, &len) == 0 && on == 1);
    if (is_parent()) TRY(udp_to(port, "waits"));
    if (is_parent()) begun = 0;
    return NULL;
}

static const char *check(void) { return holds(7777); }
static const char *change(int n) { return filter_for(7780 + n); }
static const char *verify(int n) { return holds(7780 + n); }
