/* Refused: differing user or group ids, as a set-uid program has them. */
#include "conform.h"

static const char *setup(void) { return setresuid(0, 1234, 0) == 0 ? NULL : "setresuid"; }
static const char *check(void) { return geteuid() == 1234 ? NULL : "geteuid"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
