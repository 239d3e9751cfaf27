/* Refused: asynchronous I/O context, whose id is an address that the kernel gave it. */
#include "conform.h"
#include <linux/aio_abi.h>

static aio_context_t context;

static const char *setup(void) {
    EXPECT(syscall(SYS_io_setup, 8, &context) == 0);
    return NULL;
}

static const char *check(void) {
    struct timespec none = {0, 0};
    struct io_event event;
    EXPECT(syscall(SYS_io_getevents, context, 0, 1, &event, &none) == 0);
    return NULL;
}
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
