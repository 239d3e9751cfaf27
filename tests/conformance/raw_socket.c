/* Raw IP sockets and one for echoes: protocol, options, filters, addresses. */
#include "conform.h"
#include <netinet/icmp6.h>
#include <netinet/ip_icmp.h>

#ifndef ICMP_FILTER
#define ICMP_FILTER 1
#endif

static int raw, echo, raw6, header;
static uint16_t tag = 4;

static const char *setup(void) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    struct sockaddr_in6 at6 = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    struct icmp6_filter filter6;
    uint32_t pass = ~(1u << ICMP_ECHO);
    int ttl = 44;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int range = open("/proc/sys/net/ipv4/ping_group_range", O_WRONLY | O_CLOEXEC);
    EXPECT(range >= 0 && write(range, "0 2147483647", 12) == 12 && close(range) == 0);
    raw = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
    echo = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
    raw6 = socket(AF_INET6, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_ICMPV6);
    header = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    EXPECT(raw >= 0 && echo >= 0 && raw6 >= 0 && header >= 0);
    EXPECT(setsockopt(raw, SOL_RAW, ICMP_FILTER, &pass, sizeof pass) == 0);
    EXPECT(bind(raw, (struct sockaddr *)&at, sizeof at) == 0);
    EXPECT(setsockopt(raw, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl) == 0);
    EXPECT(connect(echo, (struct sockaddr *)&at, sizeof at) == 0);
    ICMP6_FILTER_SETBLOCKALL(&filter6);
    ICMP6_FILTER_SETPASS(77, &filter6);
    EXPECT(setsockopt(raw6, IPPROTO_ICMPV6, ICMP6_FILTER, &filter6, sizeof filter6) == 0);
    EXPECT(bind(raw6, (struct sockaddr *)&at6, sizeof at6) == 0);
    return NULL;
}

static uint16_t sum(const void *data, size_t len) {
    const uint16_t *at = data;
    uint32_t all = 0;
    for (size_t i = 0; i < len / 2; i++) all += at[i];
    all = (all >> 16) + (all & 0xffff);
    return (uint16_t)~(all + (all >> 16));
}

/* What was sent is heard, and the kernel's answer passes no filter. */
static const char *pings(uint16_t id) {
    struct icmphdr ping = {.type = ICMP_ECHO, .un.echo = {.id = id, .sequence = 9}};
    struct sockaddr_in to = {.sin_family = AF_INET};
    uint8_t got[128];
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ping.checksum = sum(&ping, sizeof ping);
    EXPECT(sendto(raw, &ping, sizeof ping, 0, (struct sockaddr *)&to, sizeof to) == 8);
    EXPECT(comes(raw) && recv(raw, got, sizeof got, 0) == 28);
    EXPECT(got[8] == 44 && got[20] == ICMP_ECHO && !memcmp(got + 24, &id, 2));
    EXPECT(!readable(raw));
    return NULL;
}

static const char *echoes(void) {
    struct icmphdr ping = {.type = ICMP_ECHO, .un.echo = {.sequence = 5}};
    struct pollfd ready = {.fd = echo, .events = POLLIN};
    EXPECT(send(echo, &ping, sizeof ping, 0) == 8 && poll(&ready, 1, 5000) == 1);
    EXPECT(recv(echo, &ping, sizeof ping, 0) == 8 && ping.type == ICMP_ECHOREPLY);
    /* The raw one has heard it as well. */
    uint8_t got[128];
    EXPECT(comes(raw) && recv(raw, got, sizeof got, 0) == 28);
    return NULL;
}

static const char *holds(uint16_t wanted) {
    struct sockaddr_in6 at = {0};
    socklen_t len = sizeof at;
    int on = 0, protocol = 0;
    EXPECT(tag == wanted && is_cloexec(raw) && (flags_of(raw6) & O_NONBLOCK));
    TRY(pings(wanted));
    TRY(echoes());
    EXPECT(getsockname(raw6, (struct sockaddr *)&at, &len) == 0);
    EXPECT(!memcmp(&at.sin6_addr, &in6addr_loopback, 16));
    struct icmp6_filter filter6;
    len = sizeof filter6;
    EXPECT(getsockopt(raw6, IPPROTO_ICMPV6, ICMP6_FILTER, &filter6, &len) == 0);
    EXPECT(ICMP6_FILTER_WILLPASS(77, &filter6) && ICMP6_FILTER_WILLBLOCK(78, &filter6));
    len = sizeof on;
    EXPECT(getsockopt(header, IPPROTO_IP, IP_HDRINCL, &on, &len) == 0 && on == 1);
    EXPECT(getsockopt(header, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) == 0);
    EXPECT(protocol == IPPROTO_RAW);
    return NULL;
}

static const char *check(void) { return holds(4); }
static const char *change(int n) {
    tag = (uint16_t)(10 + n);
    return NULL;
}
static const char *verify(int n) { return holds((uint16_t)(10 + n)); }
