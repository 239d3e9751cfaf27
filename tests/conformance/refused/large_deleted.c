/* Refused: more than 16 MiB in it, a deleted file that would make each fork as much bigger. */
#include "conform.h"

#define SIZE (17ul << 20)
static int fd;

static const char *setup(void) {
    static uint8_t block[1 << 20];
    fd = open("large", O_RDWR | O_CREAT | O_TRUNC, 0600);
    EXPECT(fd >= 0 && unlink("large") == 0);
    fill(block, sizeof block, 1);
    for (size_t at = 0; at < SIZE; at += sizeof block)
        EXPECT(pwrite(fd, block, sizeof block, (off_t)at) == sizeof block);
    return NULL;
}

static const char *check(void) {
    uint8_t byte;
    return pread(fd, &byte, 1, SIZE - 1) == 1 ? NULL : "pread";
}
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
