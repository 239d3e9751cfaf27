/* TCP sockets that neither listen nor are connected: fresh, with options, bound to a port. */
#include "conform.h"
#include <netinet/tcp.h>

static int fresh, bound, v6, idle = 55;

static const char *setup(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8301)};
    int one = 1;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fresh = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bound = socket(AF_INET, SOCK_STREAM, 0);
    v6 = socket(AF_INET6, SOCK_STREAM, 0);
    EXPECT(bind(bound, (struct sockaddr *)&at, sizeof at) == 0);
    EXPECT(setsockopt(fresh, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle) == 0);
    EXPECT(setsockopt(v6, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one) == 0);
    return NULL;
}

static const char *holds(int wanted) {
    struct sockaddr_in at = {0};
    socklen_t len = sizeof at;
    int value = 0;
    EXPECT(idle == wanted && (flags_of(fresh) & O_NONBLOCK) && is_cloexec(fresh));
    EXPECT(getsockname(bound, (struct sockaddr *)&at, &len) == 0);
    EXPECT(ntohs(at.sin_port) == 8301 && at.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    len = sizeof value;
    EXPECT(getsockopt(fresh, IPPROTO_TCP, TCP_KEEPIDLE, &value, &len) == 0 && value == idle);
    EXPECT(getsockopt(v6, IPPROTO_IPV6, IPV6_V6ONLY, &value, &len) == 0 && value == 1);
    EXPECT(getpeername(fresh, (struct sockaddr *)&at, &len) == -1 && errno == ENOTCONN);
    return NULL;
}

static const char *check(void) { return holds(55); }

static const char *change(int n) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8301)};
    idle = 100 * n;
    EXPECT(setsockopt(fresh, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle) == 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT(listen(bound, 3) == 0 && connect(client, (struct sockaddr *)&at, sizeof at) == 0);
    int server = accept(bound, NULL, NULL);
    EXPECT(server >= 0 && close(server) == 0 && close(client) == 0);
    return NULL;
}

static const char *verify(int n) { return holds(100 * n); }
