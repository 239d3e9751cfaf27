/* A process that asked not to be read: differing user ids, and not dumpable. It stays so. */
/* Prepared with --privileged */
#include "conform.h"
#include <sys/prctl.h>

static int tag = 3;

static const char *setup(void) {
    EXPECT(setresuid(0, 1234, 0) == 0 && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0);
    return NULL;
}

static const char *holds(int wanted) {
    uid_t real, effective, saved;
    EXPECT(tag == wanted && getresuid(&real, &effective, &saved) == 0);
    EXPECT(real == 0 && effective == 1234 && saved == 0);
    EXPECT(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0);
    return NULL;
}

static const char *check(void) { return holds(3); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
