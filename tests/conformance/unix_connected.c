/* A unix socket that sends datagrams to another one of the process, which has a name and sends nothing
 * back. What waits in that one stays with the parent. */
#include "conform.h"
#include <stddef.h>

static int receiver, sender, tag = 3;

static const char *setup(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strcpy(at.sun_path + 1, "conform-receiver");
    socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen("conform-receiver"));
    receiver = socket(AF_UNIX, SOCK_DGRAM, 0);
    sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    EXPECT(bind(receiver, (struct sockaddr *)&at, len) == 0);
    EXPECT(connect(sender, (struct sockaddr *)&at, len) == 0);
    return send(sender, "waits", 5, 0) == 5 ? NULL : "send";
}

static const char *holds(int wanted) {
    char got[16];
    EXPECT(tag == wanted && is_cloexec(sender) && (flags_of(sender) & O_NONBLOCK));
    EXPECT(readable(receiver) == is_parent());
    if (is_parent()) return NULL;
    EXPECT(send(sender, "hello", 5, 0) == 5);
    EXPECT(recv(receiver, got, sizeof got, MSG_DONTWAIT) == 5 && !memcmp(got, "hello", 5));
    return NULL;
}

static const char *check(void) { return holds(3); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
