/* As many processes as a tree may have, in three levels: each knows its parent, and adds to memory
 * that all share. */
/* Prepared with --tree */
#include "tree.h"

#define FIRST 66
#define EACH 2
static struct member members[FIRST], below[EACH];
static struct { int sum, asked; pid_t parents[200]; } *shared;
static int mine;

static const char *works(int what, int n) {
    EXPECT(getppid() == shared->parents[mine]);
    __atomic_add_fetch(&shared->asked, 1, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&shared->sum, n, __ATOMIC_SEQ_CST);
    for (int i = 0; i < EACH && below[i].pid != 0; i++) TRY(tell(&below[i], what, n));
    return NULL;
}

static void leaf(void) { memset(below, 0, sizeof below); }
static void branches(void) {
    int own = mine;
    memset(below, 0, sizeof below);
    for (int i = 0; i < EACH; i++) {
        mine = FIRST + EACH * own + i;
        shared->parents[mine] = getpid();
        if (begin(&below[i], leaf, works) != NULL) _exit(9);
    }
    mine = own;
}

/* Below the root. */
#define ALL (FIRST + EACH * FIRST)

static const char *setup(void) {
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(shared != MAP_FAILED);
    for (int i = 0; i < FIRST; i++) {
        mine = i;
        shared->parents[i] = getpid();
        TRY(begin(&members[i], branches, works));
    }
    return NULL;
}

static const char *all(int n) {
    shared->asked = 0;
    for (int i = 0; i < FIRST; i++) TRY(tell(&members[i], 0, n));
    EXPECT(shared->asked == ALL);
    return NULL;
}

static const char *check(void) {
    TRY(all(0));
    EXPECT(shared->sum == 0);
    return NULL;
}
static const char *change(int n) { return all(n); }
static const char *verify(int n) {
    TRY(all(0));
    EXPECT(shared->sum == ALL * n);
    return NULL;
}
