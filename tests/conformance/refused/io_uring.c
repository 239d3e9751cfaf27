/* Refused: io_uring, whose rings the kernel and the process share. */
#include "conform.h"
#include <linux/io_uring.h>

static int ring;

static const char *setup(void) {
    struct io_uring_params params = {0};
    ring = (int)syscall(SYS_io_uring_setup, 4, &params);
    EXPECT(ring >= 0);
    return NULL;
}

static const char *check(void) {
    EXPECT(syscall(SYS_io_uring_enter, ring, 0, 0, 0, NULL, 0) == 0);
    return NULL;
}

static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
