/* Multipath TCP: a listener, a socket that is bound, a connection of the process with itself. To a child
 * these are of TCP. */
#include "conform.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static int listener, idle, client, server, tag = 3;

static const char *at_port(int fd, int port, int (*call)(int, const struct sockaddr *, socklen_t)) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT(call(fd, (struct sockaddr *)&at, sizeof at) == 0);
    return NULL;
}

static const char *setup(void) {
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_MPTCP);
    idle = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
    client = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
    int one = 1;
    EXPECT(listener >= 0 && idle >= 0 && client >= 0);
    EXPECT(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    TRY(at_port(listener, 8300, bind));
    EXPECT(listen(listener, 8) == 0);
    TRY(at_port(idle, 8301, bind));
    TRY(at_port(client, 8300, connect));
    server = accept(listener, NULL, NULL);
    EXPECT(server >= 0 && write(client, "waits", 5) == 5);
    struct pollfd ready = {.fd = server, .events = POLLIN};
    return poll(&ready, 1, 5000) == 1 ? NULL : "poll";
}

static const char *said(int from, int to, const char *text) {
    char got[16];
    ssize_t len = (ssize_t)strlen(text);
    struct pollfd ready = {.fd = to, .events = POLLIN};
    EXPECT(write(from, text, (size_t)len) == len && poll(&ready, 1, 5000) == 1);
    EXPECT(recv(to, got, sizeof got, 0) == len && !memcmp(got, text, (size_t)len));
    return NULL;
}

static const char *holds(int wanted) {
    char got[16];
    EXPECT(tag == wanted && is_cloexec(listener));
    EXPECT(recv(server, got, sizeof got, 0) == 5 && !memcmp(got, "waits", 5));
    TRY(said(client, server, "there"));
    TRY(said(server, client, "back"));
    int other = socket(AF_INET, SOCK_STREAM, 0);
    TRY(at_port(other, 8300, connect));
    int accepted = accept(listener, NULL, NULL);
    EXPECT(accepted >= 0);
    TRY(said(other, accepted, "anew"));
    EXPECT(close(accepted) == 0 && close(other) == 0);
    struct sockaddr_in name;
    socklen_t len = sizeof name;
    EXPECT(getsockname(idle, (struct sockaddr *)&name, &len) == 0 && ntohs(name.sin_port) == 8301);
    EXPECT(write(client, "waits", 5) == 5);
    struct pollfd ready = {.fd = server, .events = POLLIN};
    return poll(&ready, 1, 5000) == 1 ? NULL : "poll";
}

static const char *check(void) { return holds(3); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
