/* Refused: lease, which the kernel would ask one holder to give up, not two. */
#include "conform.h"

static int fd;

static const char *setup(void) {
    TRY(write_file("leased", "x", 1));
    fd = open("leased", O_RDONLY);
    EXPECT(fd >= 0 && fcntl(fd, F_SETLEASE, F_RDLCK) == 0);
    return NULL;
}

static const char *check(void) {
    EXPECT(fcntl(fd, F_GETLEASE) == F_RDLCK);
    return NULL;
}

static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
