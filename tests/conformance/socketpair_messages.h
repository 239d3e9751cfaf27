/* A unix socketpair of TYPE with messages queued, whose bounds stay where they are. */
#include "conform.h"

static int ends[2];
static char last[16] = "last";

static const char *setup(void) {
    EXPECT(socketpair(AF_UNIX, TYPE | SOCK_CLOEXEC, 0, ends) == 0);
    EXPECT(fcntl(ends[1], F_SETFL, O_RDWR | O_NONBLOCK) == 0);
    int one = 1;
    EXPECT(setsockopt(ends[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0);
    EXPECT(send(ends[0], "first one", 9, 0) == 9 && send(ends[0], "2", 1, 0) == 1);
    EXPECT(send(ends[0], last, 4, 0) == 4 && send(ends[1], "back", 4, 0) == 4);
    return NULL;
}

static const char *check(void) {
    char got[32];
    int one = 0;
    socklen_t len = sizeof one;
    size_t size = strlen(last);
    EXPECT(getsockopt(ends[0], SOL_SOCKET, SO_PASSCRED, &one, &len) == 0 && one == 1);
    EXPECT(is_cloexec(ends[0]) && (flags_of(ends[1]) & O_NONBLOCK));
    EXPECT(recv(ends[0], got, sizeof got, MSG_PEEK) == 4 && !memcmp(got, "back", 4));
    EXPECT(recv(ends[1], got, sizeof got, 0) == 9 && !memcmp(got, "first one", 9));
    EXPECT(recv(ends[1], got, sizeof got, 0) == 1 && got[0] == '2');
    EXPECT(recv(ends[1], got, sizeof got, 0) == (ssize_t)size && !memcmp(got, last, size));
    EXPECT(recv(ends[1], got, sizeof got, 0) == -1 && errno == EAGAIN);
    EXPECT(send(ends[0], "first one", 9, 0) == 9 && send(ends[0], "2", 1, 0) == 1);
    EXPECT(send(ends[0], last, size, 0) == (ssize_t)size);
    return NULL;
}

static const char *change(int n) {
    char got[32];
    for (int i = 0; i < 3; i++) EXPECT(recv(ends[1], got, sizeof got, 0) > 0);
    snprintf(last, sizeof last, "changed %d", n);
    EXPECT(send(ends[0], "first one", 9, 0) == 9 && send(ends[0], "2", 1, 0) == 1);
    EXPECT(send(ends[0], last, strlen(last), 0) == (ssize_t)strlen(last));
    return NULL;
}

static const char *verify(int n) {
    EXPECT(last[8] == '0' + n);
    return check();
}
