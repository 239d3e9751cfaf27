/* A process group whose leader has moved to another one, and processes that are in it. */
/* Prepared with --tree */
#include "tree.h"

enum { JOIN, IS };
static struct member first, second, third, fourth;

static const char *works(int what, int n) {
    if (what == JOIN) EXPECT(setpgid(0, n) == 0);
    if (what == IS) EXPECT(getpgrp() == n);
    return NULL;
}

static const char *setup(void) {
    struct member *all[] = {&first, &second, &third, &fourth};
    for (int i = 0; i < 4; i++) TRY(begin(all[i], NULL, works));
    for (int i = 0; i < 3; i++) TRY(tell(all[i], JOIN, 0));
    TRY(tell(&fourth, JOIN, first.pid));
    TRY(tell(&second, JOIN, first.pid));
    TRY(tell(&first, JOIN, third.pid));
    return NULL;
}

static const char *are(pid_t a, pid_t b, pid_t c, pid_t d) {
    TRY(tell(&first, IS, a));
    TRY(tell(&second, IS, b));
    TRY(tell(&third, IS, c));
    return tell(&fourth, IS, d);
}

static const char *check(void) { return are(third.pid, first.pid, third.pid, first.pid); }

/* A group is there as long as anybody is in it. */
static const char *change(int n) {
    TRY(tell(&second, JOIN, third.pid));
    return n == 1 ? NULL : tell(&first, JOIN, 0);
}

static const char *verify(int n) {
    return are(n == 1 ? third.pid : first.pid, third.pid, third.pid, first.pid);
}
