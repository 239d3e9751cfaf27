/* Private memory of huge pages (hugetlb): a child has its content in ordinary memory. */
#include "huge.h"

#define SIZE (4ul << 20)
static uint8_t *at;

static const char *map(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);
    EXPECT(at != MAP_FAILED);
    fill(at, SIZE / 2, 1);
    return NULL;
}

static const char *setup(void) { return with_huge_pages(3, map); }

static const char *holds(unsigned seed) {
    EXPECT(filled(at, SIZE / 2, seed));
    for (size_t i = SIZE / 2; !is_parent() && i < SIZE; i += 4096) EXPECT(at[i] == 0);
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    fill(at, SIZE / 2, 10 + (unsigned)n);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
