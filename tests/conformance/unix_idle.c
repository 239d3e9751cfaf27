/* Unix sockets that neither listen nor are connected: without a name, with an abstract one, with a
 * path, which the children of one node share. What others have sent to one stays with the parent. */
/* Not beside its parent: the path of its socket is taken. */
#include "conform.h"
#include <stddef.h>

static int unnamed, bound, stream, at_path, waits, tag = 1;

static socklen_t abstract(struct sockaddr_un *at, const char *name) {
    memset(at, 0, sizeof *at);
    at->sun_family = AF_UNIX;
    strcpy(at->sun_path + 1, name);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
}

static const char *setup(void) {
    struct sockaddr_un at;
    int one = 1;
    unnamed = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    bound = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    stream = socket(AF_UNIX, SOCK_STREAM, 0);
    at_path = socket(AF_UNIX, SOCK_DGRAM, 0);
    socklen_t len = abstract(&at, "conform-idle");
    EXPECT(bind(bound, (struct sockaddr *)&at, len) == 0);
    len = abstract(&at, "conform-idle-stream");
    EXPECT(bind(stream, (struct sockaddr *)&at, len) == 0);
    EXPECT(setsockopt(bound, SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0);
    at = (struct sockaddr_un){.sun_family = AF_UNIX, .sun_path = "/tmp/conform-idle-path"};
    unlink(at.sun_path);
    EXPECT(bind(at_path, (struct sockaddr *)&at, sizeof at) == 0);
    waits = socket(AF_UNIX, SOCK_DGRAM, 0);
    len = abstract(&at, "conform-waits");
    EXPECT(bind(waits, (struct sockaddr *)&at, len) == 0);
    EXPECT(sendto(unnamed, "waits", 5, 0, (struct sockaddr *)&at, len) == 5);
    return NULL;
}

static const char *send_to(struct sockaddr_un *at, socklen_t len, int to) {
    char got[16];
    EXPECT(sendto(unnamed, "hello", 5, 0, (struct sockaddr *)at, len) == 5);
    EXPECT(recv(to, got, sizeof got, MSG_DONTWAIT) == 5 && memcmp(got, "hello", 5) == 0);
    return NULL;
}

static const char *holds(int wanted) {
    struct sockaddr_un at;
    int on = 0;
    socklen_t len = sizeof on;
    EXPECT(tag == wanted && (flags_of(unnamed) & O_NONBLOCK) && is_cloexec(bound));
    EXPECT(getsockopt(bound, SOL_SOCKET, SO_PASSCRED, &on, &len) == 0 && on == 1);
    EXPECT(readable(waits) == is_parent());
    len = abstract(&at, "conform-waits");
    if (!is_parent()) TRY(send_to(&at, len, waits));
    len = abstract(&at, "conform-idle");
    TRY(send_to(&at, len, bound));
    at = (struct sockaddr_un){.sun_family = AF_UNIX, .sun_path = "/tmp/conform-idle-path"};
    TRY(send_to(&at, sizeof at, at_path));
    len = sizeof at;
    EXPECT(getsockname(stream, (struct sockaddr *)&at, &len) == 0);
    EXPECT(len > 3 && !memcmp(at.sun_path + 1, "conform-idle-stream", 19));
    return NULL;
}

static const char *check(void) { return holds(1); }

static const char *change(int n) {
    struct sockaddr_un at;
    int client = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    socklen_t len = abstract(&at, "conform-idle-stream");
    tag = 10 + n;
    EXPECT(connect(client, (struct sockaddr *)&at, len) == -1 && errno == ECONNREFUSED);
    EXPECT(listen(stream, 3) == 0 && connect(client, (struct sockaddr *)&at, len) == 0);
    int server = accept(stream, NULL, NULL);
    EXPECT(server >= 0 && close(server) == 0 && close(client) == 0);
    return NULL;
}

static const char *verify(int n) { return holds(10 + n); }
