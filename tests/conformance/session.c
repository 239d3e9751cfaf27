/* The process leads a group of its own; its child leads a group and a session, with no controlling
 * terminal. */
#include "conform.h"

static int tag = 3;

static const char *setup(void) {
    if (getpgrp() != getpid()) EXPECT(setpgid(0, 0) == 0);
    return NULL;
}

static const char *holds(int wanted) {
    EXPECT(tag == wanted && getpgrp() == getpid());
    if (!is_parent()) EXPECT(getsid(0) == getpid());
    EXPECT(setsid() == -1 && errno == EPERM);
    EXPECT(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO);
    return NULL;
}

static const char *check(void) { return holds(3); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
