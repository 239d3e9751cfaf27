/* Listening unix sockets: at a path (stream) and at an abstract name (seqpacket). */
/* Not beside its parent: the path of its socket is taken. */
#include "conform.h"
#include <stddef.h>

static int path_fd, abstract_fd;
static int answered;

static socklen_t address(struct sockaddr_un *at, int abstract) {
    *at = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (abstract) {
        memcpy(at->sun_path, "\0conform\0x", 10);
        return offsetof(struct sockaddr_un, sun_path) + 10;
    }
    strcpy(at->sun_path, "/tmp/conform/listen_unix/socket");
    return sizeof *at;
}

static const char *setup(void) {
    struct sockaddr_un at;
    path_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    abstract_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
    socklen_t len = address(&at, 0);
    unlink(at.sun_path);
    EXPECT(bind(path_fd, (struct sockaddr *)&at, len) == 0 && listen(path_fd, 3) == 0);
    len = address(&at, 1);
    EXPECT(bind(abstract_fd, (struct sockaddr *)&at, len) == 0 && listen(abstract_fd, 3) == 0);
    return NULL;
}

static const char *greet(int listener, int kind, int abstract) {
    struct sockaddr_un at;
    socklen_t len = address(&at, abstract);
    int client = socket(AF_UNIX, kind, 0);
    EXPECT(connect(client, (struct sockaddr *)&at, len) == 0);
    int server = accept(listener, NULL, NULL);
    char got[8];
    EXPECT(server >= 0 && write(client, "hello", 5) == 5 && read(server, got, 8) == 5);
    EXPECT(close(client) == 0 && close(server) == 0);
    return NULL;
}

static const char *check(void) {
    EXPECT(accept(abstract_fd, NULL, NULL) == -1 && errno == EAGAIN);
    TRY(greet(path_fd, SOCK_STREAM, 0));
    return greet(abstract_fd, SOCK_SEQPACKET, 1);
}

static const char *change(int n) {
    for (int i = 0; i < n; i++, answered++) TRY(greet(path_fd, SOCK_STREAM, 0));
    return NULL;
}

static const char *verify(int n) {
    EXPECT(answered == n);
    return check();
}
