/* Refused: /proc file of another process, which no other node has. */
#include "conform.h"

static int fd;

static const char *setup(void) {
    fd = open("/proc/1/status", O_RDONLY);
    EXPECT(fd >= 0);
    return NULL;
}

static const char *check(void) {
    char byte;
    return pread(fd, &byte, 1, 0) == 1 ? NULL : "pread";
}
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
