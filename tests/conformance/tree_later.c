/* A process that a child starts itself, while most of its memory is still elsewhere: it is a member of the
 * tree of the child's child, with memory that it has never touched. */
/* Prepared with --tree */
#include "tree.h"

#define SIZE (2ul << 20)
enum { WRITE, MARKED, HOLDS };
static uint8_t *memory;
static struct member first, later;

static const char *works(int what, int n) {
    if (what == WRITE) memory[SIZE / 2] = (uint8_t)n;
    if (what != WRITE) EXPECT(memory[SIZE / 2] == n);
    if (what == HOLDS) {
        EXPECT(filled(memory, SIZE / 2, 1) && filled(memory + SIZE / 2 + 4096, SIZE / 4, 2));
    }
    return NULL;
}

static const char *setup(void) {
    memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(memory != MAP_FAILED);
    fill(memory, SIZE / 2, 1), fill(memory + SIZE / 2 + 4096, SIZE / 4, 2);
    return begin(&first, NULL, works);
}

static const char *check(void) { return tell(&first, WRITE, 0); }

/* The connection over which the root is told is not its. */
static void forgets(void) { syscall(SYS_close_range, 3, CONTROL_FD - 1, 0); }

static const char *change(int n) {
    TRY(begin(&later, forgets, works));
    return tell(&later, WRITE, 100 + n);
}

/* Asked in the child itself it would touch all of it, before that has a child of its own. */
static const char *verify(int n) {
    static int asked;
    TRY(tell(&later, asked++ < 1 ? MARKED : HOLDS, 100 + n));
    return tell(&first, WRITE, 0);
}
