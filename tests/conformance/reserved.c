/* Address space of many gigabytes without access, with a few pages of data in it, some of them
 * without access again. */
#include "conform.h"

#define PAGE 4096ul
#define RESERVED (64ul << 30)
static uint8_t *at;

static const char *setup(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    at = mmap(NULL, RESERVED, PROT_NONE, flags, -1, 0);
    EXPECT(at != MAP_FAILED);
    EXPECT(mprotect(at + (8ul << 30), 4 * PAGE, PROT_READ | PROT_WRITE) == 0);
    EXPECT(mprotect(at + (40ul << 30), 4 * PAGE, PROT_READ | PROT_WRITE) == 0);
    fill(at + (8ul << 30), 4 * PAGE, 1);
    fill(at + (40ul << 30), 4 * PAGE, 2);
    return mprotect(at + (40ul << 30), 4 * PAGE, PROT_NONE) == 0 ? NULL : "mprotect";
}

static const char *holds(unsigned seed) {
    uint8_t *hidden = at + (40ul << 30);
    EXPECT(filled(at + (8ul << 30), 4 * PAGE, seed));
    EXPECT(mprotect(hidden, 4 * PAGE, PROT_READ) == 0);
    EXPECT(filled(hidden, 4 * PAGE, 2));
    EXPECT(mprotect(hidden, 4 * PAGE, PROT_NONE) == 0);
    /* Elsewhere there is nothing that may be read. */
    int ends[2];
    EXPECT(pipe(ends) == 0);
    EXPECT(write(ends[1], at + (20ul << 30), 1) == -1 && errno == EFAULT);
    EXPECT(close(ends[0]) == 0 && close(ends[1]) == 0);
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    fill(at + (8ul << 30), 4 * PAGE, 10 + (unsigned)n);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
