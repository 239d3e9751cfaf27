/* A FIFO with both ends here: what is in it, its size, and a non-blocking reading end. */
#include "conform.h"

static int ends[2];
static char expected[64] = "in the pipe";

static const char *setup(void) {
    EXPECT(mkfifo("fifo", 0600) == 0 || errno == EEXIST);
    ends[0] = open("fifo", O_RDONLY | O_NONBLOCK);
    ends[1] = open("fifo", O_WRONLY);
    EXPECT(ends[0] >= 0 && ends[1] >= 0);
    EXPECT(fcntl(ends[0], F_SETPIPE_SZ, 16384) == 16384);
    EXPECT(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0);
    EXPECT(fcntl(ends[1], F_SETFD, FD_CLOEXEC) == 0);
    EXPECT(write(ends[1], expected, strlen(expected)) == (ssize_t)strlen(expected));
    return NULL;
}

static const char *check(void) {
    char got[64];
    size_t len = strlen(expected);
    EXPECT(fcntl(ends[0], F_GETPIPE_SZ) == 16384);
    EXPECT((flags_of(ends[0]) & O_NONBLOCK) && !(flags_of(ends[1]) & O_NONBLOCK));
    EXPECT(!is_cloexec(ends[0]) && is_cloexec(ends[1]));
    EXPECT(read(ends[0], got, sizeof got) == (ssize_t)len && !memcmp(got, expected, len));
    EXPECT(read(ends[0], got, sizeof got) == -1 && errno == EAGAIN);
    EXPECT(write(ends[1], expected, len) == (ssize_t)len);
    return NULL;
}

static const char *change(int n) {
    char more[16];
    int len = snprintf(more, sizeof more, ", and %d", n);
    EXPECT(write(ends[1], more, (size_t)len) == len);
    strcat(expected, more);
    return NULL;
}

static const char *verify(int n) {
    EXPECT(expected[strlen(expected) - 1] == '0' + n);
    return check();
}
