/* Refused: raw IP socket, which hears what arrives at the parent's machine. */
#include "conform.h"

static int fd;

static const char *setup(void) {
    fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
    return fd >= 0 ? NULL : "socket";
}

static const char *check(void) { return fcntl(fd, F_GETFD) == 0 ? NULL : "F_GETFD"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
