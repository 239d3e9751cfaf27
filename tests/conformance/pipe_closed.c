/* Pipes whose other end has been closed: the rest, then end-of-file; or EPIPE. */
#include "conform.h"

static int in[2], out[2];
static int left = 4;

static const char *setup(void) {
    EXPECT(pipe(in) == 0 && pipe(out) == 0);
    EXPECT(write(in[1], "rest", 4) == 4);
    EXPECT(close(in[1]) == 0 && close(out[0]) == 0);
    return NULL;
}

static const char *check(void) {
    int waiting;
    struct pollfd at = {.fd = in[0], .events = POLLIN};
    EXPECT(ioctl(in[0], FIONREAD, &waiting) == 0 && waiting == left);
    EXPECT(poll(&at, 1, 0) == 1 && (at.revents & POLLHUP));
    EXPECT(write(out[1], "x", 1) == -1 && errno == EPIPE);
    return NULL;
}

static const char *change(int n) {
    char got[4];
    left -= n;
    return read(in[0], got, (size_t)n) == n && !memcmp(got, "rest", (size_t)n) ? NULL : "read";
}

static const char *verify(int n) {
    EXPECT(left == 4 - n);
    return check();
}
