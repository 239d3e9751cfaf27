/* TCP connections of the process with itself: with data on them in both directions, half closed,
 * IPv6, and one whose port is that of a listener. */
#include "conform.h"

#define QUEUED 50000
static int client, server, half[2], v6[2], listener, tag = 1;

static const char *join(int family, int port, int *a, int *b, int *keep) {
    struct sockaddr_in at4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 at6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    at4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at6.sin6_addr = in6addr_loopback;
    struct sockaddr *at = family == AF_INET ? (void *)&at4 : (void *)&at6;
    socklen_t len = family == AF_INET ? sizeof at4 : sizeof at6;
    int one = 1;
    *keep = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT(setsockopt(*keep, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    EXPECT(bind(*keep, at, len) == 0 && listen(*keep, 4) == 0);
    *a = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT(connect(*a, at, len) == 0 && (*b = accept(*keep, NULL, NULL)) >= 0);
    return NULL;
}

static const char *setup(void) {
    static uint8_t bytes[QUEUED];
    int other;
    TRY(join(AF_INET, 8310, &client, &server, &listener));
    TRY(join(AF_INET, 8311, &half[0], &half[1], &other));
    EXPECT(close(other) == 0);
    TRY(join(AF_INET6, 8312, &v6[0], &v6[1], &other));
    EXPECT(close(other) == 0);
    fill(bytes, QUEUED, 1);
    EXPECT(write(client, bytes, QUEUED) == QUEUED && write(server, "back", 4) == 4);
    EXPECT(write(half[0], "end", 3) == 3 && shutdown(half[0], SHUT_WR) == 0);
    return fcntl(server, F_SETFL, O_NONBLOCK) == 0 ? NULL : "F_SETFL";
}

/* Takes what waits and puts the same there again. */
static const char *holds(unsigned seed, int wanted) {
    static uint8_t bytes[QUEUED];
    char text[8];
    EXPECT(tag == wanted);
    for (size_t at = 0; at < QUEUED;) {
        ssize_t got = read(server, bytes + at, QUEUED - at);
        EXPECT(got > 0);
        at += (size_t)got;
    }
    EXPECT(read(server, text, 1) == -1 && errno == EAGAIN);
    EXPECT(filled(bytes, QUEUED, seed) && write(client, bytes, QUEUED) == QUEUED);
    EXPECT(read(client, text, 8) == 4 && !memcmp(text, "back", 4) && write(server, text, 4) == 4);
    EXPECT(is_cloexec(client) && !is_cloexec(server) && (flags_of(server) & O_NONBLOCK));
    EXPECT(write(v6[0], "six", 3) == 3 && read(v6[1], text, 8) == 3);
    EXPECT(recv(half[1], text, 8, MSG_PEEK) == 3 && !memcmp(text, "end", 3));
    EXPECT(write(half[1], "ok", 2) == 2 && read(half[0], text, 8) == 2);
    struct sockaddr_in at = {0};
    socklen_t len = sizeof at;
    EXPECT(getpeername(client, (struct sockaddr *)&at, &len) == 0 && ntohs(at.sin_port) == 8310);
    int more = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT(connect(more, (struct sockaddr *)&at, sizeof at) == 0);
    int accepted = accept(listener, NULL, NULL);
    EXPECT(accepted >= 0 && close(more) == 0 && close(accepted) == 0);
    return NULL;
}

static const char *check(void) { return holds(1, 1); }

static const char *change(int n) {
    static uint8_t bytes[QUEUED];
    for (size_t at = 0; at < QUEUED;) {
        ssize_t got = read(server, bytes + at, QUEUED - at);
        EXPECT(got > 0);
        at += (size_t)got;
    }
    fill(bytes, QUEUED, 10 + (unsigned)n);
    tag = 10 + n;
    return write(client, bytes, QUEUED) == QUEUED ? NULL : "write";
}

static const char *verify(int n) { return holds(10 + (unsigned)n, 10 + n); }
