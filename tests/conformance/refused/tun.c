/* Refused: tun, whose packets come from the parent's machine. */
#include "conform.h"

static int fd;

static const char *setup(void) {
    if (access("/dev/net/tun", F_OK) != 0) {
        EXPECT(mkdir("/dev/net", 0755) == 0 || errno == EEXIST);
        EXPECT(mknod("/dev/net/tun", S_IFCHR | 0600, (10 << 8) | 200) == 0);
    }
    fd = open("/dev/net/tun", O_RDWR);
    EXPECT(fd >= 0);
    return NULL;
}

static const char *check(void) { return fcntl(fd, F_GETFD) == 0 ? NULL : "F_GETFD"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
