/* Listening TCP sockets, IPv4 and IPv6, with the options that servers set. */
#include "conform.h"
#include <netinet/tcp.h>

static int v4, v6;
static int idle = 77;

static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    return getsockopt(fd, level, name, &value, &len) == 0 ? value : -1;
}

static const char *set(int fd, int level, int name, int value) {
    EXPECT(setsockopt(fd, level, name, &value, sizeof value) == 0);
    return NULL;
}

static const char *setup(void) {
    struct sockaddr_in at4 = {.sin_family = AF_INET, .sin_port = htons(8100)};
    struct sockaddr_in6 at6 = {.sin6_family = AF_INET6, .sin6_port = htons(8100)};
    v4 = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    v6 = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    TRY(set(v4, SOL_SOCKET, SO_REUSEADDR, 1));
    TRY(set(v4, SOL_SOCKET, SO_REUSEPORT, 1));
    TRY(set(v4, SOL_SOCKET, SO_KEEPALIVE, 1));
    TRY(set(v4, IPPROTO_TCP, TCP_NODELAY, 1));
    TRY(set(v4, IPPROTO_TCP, TCP_KEEPIDLE, idle));
    TRY(set(v4, IPPROTO_TCP, TCP_DEFER_ACCEPT, 3));
    TRY(set(v4, IPPROTO_TCP, TCP_FASTOPEN, 8));
    TRY(set(v4, SOL_SOCKET, SO_RCVBUF, 50000));
    TRY(set(v6, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    struct linger linger = {.l_onoff = 1, .l_linger = 5};
    EXPECT(setsockopt(v6, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    EXPECT(bind(v4, (struct sockaddr *)&at4, sizeof at4) == 0 && listen(v4, 5) == 0);
    EXPECT(bind(v6, (struct sockaddr *)&at6, sizeof at6) == 0 && listen(v6, 5) == 0);
    return NULL;
}

static const char *greet(int family, int listener) {
    struct sockaddr_in at4 = {.sin_family = AF_INET, .sin_port = htons(8100)};
    struct sockaddr_in6 at6 = {.sin6_family = AF_INET6, .sin6_port = htons(8100)};
    at4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at6.sin6_addr = in6addr_loopback;
    int client = socket(family, SOCK_STREAM, 0);
    struct sockaddr *at = family == AF_INET ? (void *)&at4 : (void *)&at6;
    EXPECT(connect(client, at, family == AF_INET ? sizeof at4 : sizeof at6) == 0);
    EXPECT(write(client, "hi", 2) == 2);
    struct pollfd ready = {.fd = listener, .events = POLLIN};
    EXPECT(poll(&ready, 1, 5000) == 1);
    int server = accept(listener, NULL, NULL);
    char got[4];
    EXPECT(server >= 0 && read(server, got, 4) == 2);
    EXPECT(close(client) == 0 && close(server) == 0);
    return NULL;
}

static const char *check(void) {
    EXPECT((flags_of(v4) & O_NONBLOCK) && !(flags_of(v6) & O_NONBLOCK) && is_cloexec(v6));
    EXPECT(option(v4, SOL_SOCKET, SO_REUSEPORT) == 1);
    EXPECT(option(v4, SOL_SOCKET, SO_REUSEADDR) == 1 && option(v6, SOL_SOCKET, SO_REUSEADDR) == 0);
    EXPECT(option(v4, SOL_SOCKET, SO_KEEPALIVE) == 1);
    EXPECT(option(v4, IPPROTO_TCP, TCP_NODELAY) == 1);
    EXPECT(option(v4, IPPROTO_TCP, TCP_KEEPIDLE) == idle);
    EXPECT(option(v4, IPPROTO_TCP, TCP_DEFER_ACCEPT) == 3);
    EXPECT(option(v4, IPPROTO_TCP, TCP_FASTOPEN) == 8);
    EXPECT(option(v4, SOL_SOCKET, SO_RCVBUF) == 100000);
    EXPECT(option(v6, IPPROTO_IPV6, IPV6_V6ONLY) == 1);
    struct linger linger;
    socklen_t len = sizeof linger;
    EXPECT(getsockopt(v6, SOL_SOCKET, SO_LINGER, &linger, &len) == 0);
    EXPECT(linger.l_onoff == 1 && linger.l_linger == 5);
    TRY(greet(AF_INET, v4));
    return greet(AF_INET6, v6);
}

static const char *change(int n) {
    idle = 100 * n;
    return set(v4, IPPROTO_TCP, TCP_KEEPIDLE, idle);
}

static const char *verify(int n) {
    EXPECT(idle == 100 * n);
    return check();
}
