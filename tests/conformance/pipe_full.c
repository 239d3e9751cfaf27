/* A pipe that is full to the last byte, so that its writing end would block. */
#include "conform.h"

static int ends[2];
static uint8_t data[65536];

static const char *setup(void) {
    EXPECT(pipe2(ends, O_NONBLOCK) == 0);
    fill(data, sizeof data, 3);
    EXPECT(write(ends[1], data, sizeof data) == sizeof data);
    return NULL;
}

static const char *check(void) {
    static uint8_t got[65536];
    struct pollfd at = {.fd = ends[1], .events = POLLOUT};
    EXPECT(poll(&at, 1, 0) == 0);
    EXPECT(read(ends[0], got, sizeof got) == sizeof got && !memcmp(got, data, sizeof got));
    EXPECT(write(ends[1], data, sizeof data) == sizeof data);
    return NULL;
}

static const char *change(int n) {
    static uint8_t got[65536];
    EXPECT(read(ends[0], got, sizeof got) == sizeof got);
    fill(data, sizeof data, 3 + (unsigned)n);
    EXPECT(write(ends[1], data, sizeof data) == sizeof data);
    return NULL;
}

static const char *verify(int n) {
    EXPECT(filled(data, sizeof data, 3 + (unsigned)n));
    return check();
}
