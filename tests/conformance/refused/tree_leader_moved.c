/* Refused: whose leader has left it, a process group of a tree. */
/* Prepared with --tree */
#include "../tree.h"

static struct member leader, other, third;

static const char *works(int what, int n) {
    (void)what;
    return setpgid(0, n) == 0 ? NULL : "setpgid";
}

static const char *setup(void) {
    TRY(begin(&leader, NULL, works));
    TRY(begin(&other, NULL, works));
    TRY(begin(&third, NULL, works));
    TRY(tell(&leader, 0, 0));
    TRY(tell(&third, 0, 0));
    TRY(tell(&other, 0, leader.pid));
    return tell(&leader, 0, third.pid);
}
static const char *check(void) { return getpgid(other.pid) == leader.pid ? NULL : "moved"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
