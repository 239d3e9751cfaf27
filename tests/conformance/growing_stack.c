/* A mapping that grows downwards, and the main stack, grown and to be grown further. */
#include "conform.h"

#define PAGE 4096ul
static uint8_t *top;
static size_t depth = 4;

static const char *setup(void) {
    /* Room below it: a gap that nothing else takes. */
    uint8_t *room = mmap(NULL, 8ul << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(room != MAP_FAILED && munmap(room, 8ul << 20) == 0);
    uint8_t *at = room + (7ul << 20);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE;
    EXPECT(mmap(at, 2 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == at);
    top = at + 2 * PAGE;
    for (size_t i = 1; i <= depth; i++) top[-(long)(i * PAGE)] = (uint8_t)i;
    return NULL;
}

__attribute__((noinline)) static unsigned deep(unsigned levels) {
    volatile uint8_t page[4096];
    page[levels % 4096] = (uint8_t)levels;
    return levels == 0 ? 0 : deep(levels - 1) + page[levels % 4096];
}

static const char *holds(size_t wanted) {
    EXPECT(depth == wanted);
    for (size_t i = 1; i <= depth; i++) EXPECT(top[-(long)(i * PAGE)] == (uint8_t)i);
    unsigned sum = 0;
    for (unsigned i = 0; i <= 300; i++) sum += (uint8_t)i;
    EXPECT(deep(300) == sum);
    return NULL;
}

static const char *check(void) { return holds(4); }

static const char *change(int n) {
    size_t further = depth + 8 * (size_t)n;
    while (depth < further) {
        depth++;
        top[-(long)(depth * PAGE)] = (uint8_t)depth;
    }
    return deep(600) > 0 ? NULL : "deep";
}

static const char *verify(int n) { return holds(4 + 8 * (size_t)n); }
