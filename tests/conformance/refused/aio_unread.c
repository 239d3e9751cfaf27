/* Refused: asynchronous I/O with completions that nobody has read. */
#include "conform.h"
#include <linux/aio_abi.h>

static aio_context_t context;
static char got[8];

static const char *setup(void) {
    int file = open("/proc/self/exe", O_RDONLY);
    struct iocb read = {.aio_lio_opcode = IOCB_CMD_PREAD,
                        .aio_fildes = (uint32_t)file,
                        .aio_buf = (uint64_t)(uintptr_t)got,
                        .aio_nbytes = 8};
    struct iocb *all[] = {&read};
    EXPECT(syscall(SYS_io_setup, 8, &context) == 0);
    EXPECT(syscall(SYS_io_submit, context, 1, all) == 1);
    return close(file) == 0 ? NULL : "close";
}

/* The ring, as user space sees it: id, number, head, tail. */
static const char *check(void) {
    const uint32_t *ring = (const uint32_t *)(uintptr_t)context;
    EXPECT(ring[3] - ring[2] == 1);
    return NULL;
}
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
