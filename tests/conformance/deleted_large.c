/* A deleted file with more in it than is usually taken along. */
/* Prepared with --content-max 24 */
#include "conform.h"

#define SIZE (18ul << 20)
#define BLOCK (1ul << 20)
static uint8_t block[BLOCK];
static int fd;

static const char *put(size_t at, unsigned seed) {
    fill(block, BLOCK, seed);
    return pwrite(fd, block, BLOCK, (off_t)at) == BLOCK ? NULL : "pwrite";
}

static const char *setup(void) {
    fd = open("large", O_RDWR | O_CREAT | O_TRUNC, 0600);
    EXPECT(fd >= 0 && unlink("large") == 0);
    for (size_t at = 0; at < SIZE; at += BLOCK) TRY(put(at, (unsigned)(at / BLOCK)));
    return NULL;
}

static const char *holds(unsigned first) {
    for (size_t at = 0; at < SIZE; at += BLOCK) {
        EXPECT(pread(fd, block, BLOCK, (off_t)at) == BLOCK);
        EXPECT(filled(block, BLOCK, at == 0 ? first : (unsigned)(at / BLOCK)));
    }
    return NULL;
}

static const char *check(void) { return holds(0); }
static const char *change(int n) { return put(0, 100 + (unsigned)n); }
static const char *verify(int n) { return holds(100 + (unsigned)n); }
