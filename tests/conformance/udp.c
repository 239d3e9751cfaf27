/* UDP sockets, IPv4 and IPv6: bound, connected, not bound at all, with options. */
#include "conform.h"

static int server, client, unbound, v6;
static int ttl = 33;

static const char *local(int fd, int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT(bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
    return NULL;
}

static const char *setup(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(8200)};
    struct sockaddr_in6 at6 = {.sin6_family = AF_INET6, .sin6_port = htons(8202)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at6.sin6_addr = in6addr_loopback;
    server = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    client = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    unbound = socket(AF_INET, SOCK_DGRAM, 0);
    v6 = socket(AF_INET6, SOCK_DGRAM, 0);
    TRY(local(server, 8200));
    TRY(local(client, 8201));
    EXPECT(connect(client, (struct sockaddr *)&to, sizeof to) == 0);
    int one = 1;
    EXPECT(setsockopt(server, SOL_SOCKET, SO_BROADCAST, &one, sizeof one) == 0);
    EXPECT(setsockopt(server, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl) == 0);
    EXPECT(setsockopt(v6, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one) == 0);
    EXPECT(bind(v6, (struct sockaddr *)&at6, sizeof at6) == 0);
    EXPECT(connect(v6, (struct sockaddr *)&at6, sizeof at6) == 0);
    return NULL;
}

static const char *check(void) {
    char got[16];
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    int value = 0;
    EXPECT(send(client, "hello", 5, 0) == 5);
    struct pollfd ready = {.fd = server, .events = POLLIN};
    EXPECT(poll(&ready, 1, 5000) == 1);
    EXPECT(recvfrom(server, got, sizeof got, 0, (struct sockaddr *)&at, &len) == 5);
    EXPECT(ntohs(at.sin_port) == 8201 && is_cloexec(client));
    EXPECT(recv(server, got, sizeof got, 0) == -1 && errno == EAGAIN);
    EXPECT(send(v6, "self", 4, 0) == 4 && recv(v6, got, sizeof got, 0) == 4);
    len = sizeof at;
    EXPECT(getsockname(unbound, (struct sockaddr *)&at, &len) == 0 && at.sin_port == 0);
    len = sizeof value;
    EXPECT(getsockopt(server, IPPROTO_IP, IP_TTL, &value, &len) == 0 && value == ttl);
    EXPECT(getsockopt(server, SOL_SOCKET, SO_BROADCAST, &value, &len) == 0 && value == 1);
    EXPECT(getsockopt(server, IPPROTO_IP, 15, &value, &len) == 0 && value == 0);
    return NULL;
}

static const char *change(int n) {
    ttl = 40 + n;
    return setsockopt(server, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl) == 0 ? NULL : "IP_TTL";
}

static const char *verify(int n) {
    EXPECT(ttl == 40 + n);
    return check();
}
