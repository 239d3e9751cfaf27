/* A unix stream socketpair with bytes queued both ways. */
#include "conform.h"

static int ends[2];
static char expected[64] = "queued";

static const char *setup(void) {
    EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    EXPECT(fcntl(ends[1], F_SETFL, O_RDWR | O_NONBLOCK) == 0);
    EXPECT(write(ends[0], expected, 6) == 6 && write(ends[1], "back", 4) == 4);
    return NULL;
}

static const char *check(void) {
    char got[64];
    size_t len = strlen(expected);
    EXPECT(flags_of(ends[0]) == O_RDWR && flags_of(ends[1]) == (O_RDWR | O_NONBLOCK));
    EXPECT(recv(ends[0], got, sizeof got, MSG_PEEK) == 4 && !memcmp(got, "back", 4));
    EXPECT(read(ends[1], got, sizeof got) == (ssize_t)len && !memcmp(got, expected, len));
    EXPECT(read(ends[1], got, sizeof got) == -1 && errno == EAGAIN);
    EXPECT(write(ends[0], expected, len) == (ssize_t)len);
    return NULL;
}

static const char *change(int n) {
    char more = (char)('0' + n);
    EXPECT(write(ends[0], &more, 1) == 1);
    strncat(expected, &more, 1);
    return NULL;
}

static const char *verify(int n) {
    EXPECT(expected[6] == '0' + n);
    return check();
}
