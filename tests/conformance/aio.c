/* Contexts of asynchronous I/O in which nothing is under way: their ids, which are addresses, and
 * what they can do. */
#include "conform.h"
#include <linux/aio_abi.h>

static aio_context_t first, second;
static const char *path = "aio.data";
static int file;

static const char *setup(void) {
    aio_context_t spare = 0;
    EXPECT(syscall(SYS_io_setup, 8, &spare) == 0);
    EXPECT(syscall(SYS_io_setup, 8, &first) == 0 && syscall(SYS_io_setup, 1000, &second) == 0);
    /* So that the ring is not the first of its table. */
    EXPECT(syscall(SYS_io_destroy, spare) == 0);
    file = open(path, O_RDWR | O_CREAT, 0644);
    EXPECT(file >= 0 && write(file, "abcdefgh", 8) == 8);
    return NULL;
}

__attribute__((used)) const char *files(void) { return write_file(path, "abcdefgh", 8); }

/* One request, to the end. */
static const char *works(aio_context_t context) {
    char got[8] = {0};
    struct iocb read = {.aio_data = 77,
                        .aio_lio_opcode = IOCB_CMD_PREAD,
                        .aio_fildes = (uint32_t)file,
                        .aio_buf = (uint64_t)(uintptr_t)got,
                        .aio_nbytes = 8};
    struct iocb *all[] = {&read};
    struct io_event event;
    EXPECT(syscall(SYS_io_submit, context, 1, all) == 1);
    EXPECT(syscall(SYS_io_getevents, context, 1, 1, &event, NULL) == 1);
    EXPECT(event.data == 77 && event.res == 8 && memcmp(got, "abcdefgh", 8) == 0);
    struct timespec none = {0, 0};
    EXPECT(syscall(SYS_io_getevents, context, 0, 1, &event, &none) == 0);
    return NULL;
}

static const char *check(void) {
    TRY(works(first));
    /* More than the ring has room for, one after another. */
    for (int i = 0; i < 2500; i++) TRY(works(second));
    return NULL;
}
static const char *change(int n) {
    aio_context_t more = 0;
    EXPECT(syscall(SYS_io_setup, 8 + n, &more) == 0 && more != first && more != second);
    TRY(works(more));
    EXPECT(syscall(SYS_io_destroy, more) == 0);
    return NULL;
}
static const char *verify(int n) { return n > 0 ? check() : "no"; }
