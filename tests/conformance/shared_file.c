/* A writable shared mapping of a file: a child's shows the file of that name on its own node. */
#include "conform.h"

#define PAGE 4096ul
static uint8_t *at;

const char *files(void) {
    static uint8_t bytes[4 * PAGE];
    fill(bytes, sizeof bytes, 1);
    return write_file("mapped", bytes, sizeof bytes);
}

static const char *setup(void) {
    int fd = open("mapped", O_RDWR);
    EXPECT(fd >= 0);
    at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT(at != MAP_FAILED && close(fd) == 0);
    return NULL;
}

static const char *check(void) {
    EXPECT(filled(at, 3 * PAGE, 1));
    uint8_t byte;
    int fd = open("mapped", O_RDONLY);
    EXPECT(fd >= 0 && pread(fd, &byte, 1, 3 * PAGE + 9) == 1 && close(fd) == 0);
    EXPECT(at[3 * PAGE + 9] == byte);
    return NULL;
}

/* What is written is in the file; children of one node share it, as any two processes would. */
static const char *change(int n) {
    uint8_t byte;
    at[3 * PAGE + 9] = (uint8_t)n;
    int fd = open("mapped", O_RDONLY);
    EXPECT(fd >= 0 && pread(fd, &byte, 1, 3 * PAGE + 9) == 1 && close(fd) == 0);
    EXPECT(byte == n);
    return NULL;
}

static const char *verify(int n) { return n > 0 ? check() : "no"; }
