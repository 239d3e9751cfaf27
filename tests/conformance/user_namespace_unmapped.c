/* A process in a user namespace in which no id is mapped: whoever it is outside has no number inside. */
#include "user_namespace.h"

static int tag = 4;

static const char *setup(void) { return unshare(CLONE_NEWUSER) == 0 ? NULL : "unshare"; }

static const char *holds(int wanted) {
    EXPECT(tag == wanted && getuid() == 65534 && getegid() == 65534);
    EXPECT(capabilities() == all_capabilities());
    TRY(has_fields("/proc/self/uid_map", ""));
    TRY(has_fields("/proc/self/gid_map", ""));
    TRY(has_fields("/proc/self/setgroups", "allow\n"));
    EXPECT(setuid(0) == -1 && errno == EINVAL);
    return NULL;
}

static const char *check(void) { return holds(4); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
