/* A memfd that is mapped twice, at different offsets, and no longer open: the two mappings show
 * each other's changes; and a private mapping of one. */
#include "conform.h"

#define PAGE 4096ul
static uint8_t *whole, *part, *private;

static const char *setup(void) {
    int fd = memfd_create("conform", MFD_CLOEXEC), other = memfd_create("other", MFD_CLOEXEC);
    EXPECT(fd >= 0 && ftruncate(fd, 16 * PAGE) == 0 && ftruncate(other, 4 * PAGE) == 0);
    whole = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    part = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 8 * PAGE);
    private = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, other, 0);
    EXPECT(whole != MAP_FAILED && part != MAP_FAILED && private != MAP_FAILED);
    fill(whole, 16 * PAGE, 1);
    EXPECT(pwrite(other, whole, 4 * PAGE, 0) == (ssize_t)(4 * PAGE));
    private[PAGE] = 77;
    return close(fd) == 0 && close(other) == 0 ? NULL : "close";
}

static const char *holds(unsigned seed) {
    EXPECT(filled(whole, 16 * PAGE, seed));
    EXPECT(memcmp(whole + 8 * PAGE, part, 4 * PAGE) == 0);
    uint8_t old = part[5];
    part[5] = (uint8_t)(old + 1);
    EXPECT(whole[8 * PAGE + 5] == (uint8_t)(old + 1));
    whole[8 * PAGE + 5] = old;
    EXPECT(part[5] == old);
    EXPECT(filled(private, PAGE, 1) && private[PAGE] == 77);
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    fill(whole, 16 * PAGE, 10 + (unsigned)n);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
