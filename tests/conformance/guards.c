/* Guard regions, where touching is a fault though the mapping around it can be read and written:
 * as C libraries and language runtimes put them below stacks. */
/* Before Linux 6.13 a node refuses: guard regions (MADV_GUARD_INSTALL, Linux 6.13) */
#include "conform.h"

#define PAGE 4096ul
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103
static uint8_t *at;
static int guards;

static const char *setup(void) {
    at = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(at != MAP_FAILED);
    fill(at, 64 * PAGE, 1);
    fill(at + 10 * PAGE, PAGE, 2);
    /* They are older, 6.13, but only since then a node can see them. */
    guards = since(6, 16, "guard regions");
    if (!guards) return NULL;
    EXPECT(madvise(at + 8 * PAGE, 2 * PAGE, GUARD_INSTALL) == 0);
    EXPECT(madvise(at + 63 * PAGE, PAGE, GUARD_INSTALL) == 0);
    return NULL;
}

static const char *holds(unsigned seed) {
    EXPECT(filled(at, 8 * PAGE, seed));
    EXPECT(there(at + 8 * PAGE) == !guards && there(at + 10 * PAGE - 1) == !guards);
    EXPECT(there(at + 10 * PAGE) == 1 && there(at + 62 * PAGE) == 1);
    EXPECT(there(at + 63 * PAGE) == !guards);
    EXPECT(filled(at + 10 * PAGE, PAGE, 2));
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    fill(at, 8 * PAGE, 10 + (unsigned)n);
    if (!guards) return NULL;
    /* One can be taken away and made elsewhere. */
    EXPECT(madvise(at + 9 * PAGE, PAGE, GUARD_REMOVE) == 0 && there(at + 9 * PAGE) == 1);
    EXPECT(madvise(at + 9 * PAGE, PAGE, GUARD_INSTALL) == 0);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
