/* Refused: net:[, a descriptor of a namespace, which no other node has. */
#include "conform.h"

static int fd;

static const char *setup(void) {
    fd = open("/proc/self/ns/net", O_RDONLY);
    EXPECT(fd >= 0);
    return NULL;
}

static const char *check(void) { return fcntl(fd, F_GETFD) == 0 ? NULL : "F_GETFD"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
