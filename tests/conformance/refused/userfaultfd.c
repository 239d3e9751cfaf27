/* Refused: userfaultfd, by which the process serves its own memory. */
#include "conform.h"
#include <linux/userfaultfd.h>

static int fd;

static const char *setup(void) {
    fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API};
    EXPECT(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0);
    return NULL;
}

static const char *check(void) {
    char event[64];
    EXPECT(read(fd, event, sizeof event) == -1 && errno == EAGAIN);
    return NULL;
}

static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
