/* Refused: more than one level below, where a child's node could make none like it. */
#include "user_namespace.h"

static const char *setup(void) {
    TRY(enter_mapped("0 0 1\n", "0 0 1\n"));
    return unshare(CLONE_NEWUSER) == 0 ? NULL : "unshare";
}
static const char *check(void) { return capabilities() == all_capabilities() ? NULL : "no"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
