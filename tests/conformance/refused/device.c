/* Refused: device /dev/kmsg, which is the machine's. */
#include "conform.h"

static int fd;

static const char *setup(void) {
    fd = open("/dev/kmsg", O_WRONLY);
    EXPECT(fd >= 0);
    return NULL;
}

static const char *check(void) { return fcntl(fd, F_GETFD) == 0 ? NULL : "F_GETFD"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
