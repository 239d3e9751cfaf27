/* Refused: waits in vfork(2), a member, for a child that neither executes nor ends. */
/* Prepared with --tree */
#include "../tree.h"

static struct member member;

static void begins(void) {
    if (vfork() == 0) {
        for (;;) syscall(SYS_pause);
    }
}
static const char *works(int what, int n) { return what == n ? NULL : "no"; }

static const char *setup(void) {
    TRY(begin(&member, begins, works));
    return usleep(200000) == 0 ? NULL : "usleep";
}
static const char *check(void) { return kill(member.pid, 0) == 0 ? NULL : "gone"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
