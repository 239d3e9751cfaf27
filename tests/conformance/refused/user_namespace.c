/* Refused: user namespace, outside of which its capabilities do not count. */
#include "conform.h"
#include <sched.h>

static const char *setup(void) {
    return unshare(CLONE_NEWUSER) == 0 ? NULL : "unshare";
}
static const char *check(void) {
    struct stat own;
    return stat("/proc/self/ns/user", &own) == 0 ? NULL : "stat";
}
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
