/* Refused: another user namespace, in which a member of the tree is. */
/* Prepared with --tree */
#include "tree.h"
#include <sched.h>

static struct member inside;
static void enters(void) {
    if (unshare(CLONE_NEWUSER) != 0) _exit(1);
}
static const char *obeys(int what, int n) { return what == n ? NULL : "no"; }

static const char *setup(void) {
    TRY(begin(&inside, enters, obeys));
    return tell(&inside, 1, 1);
}
static const char *check(void) { return tell(&inside, 1, 1); }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
