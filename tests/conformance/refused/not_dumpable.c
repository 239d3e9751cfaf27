/* Refused: not dumpable, which says that nobody is to read it. */
#include "conform.h"
#include <sys/prctl.h>

static const char *setup(void) { return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 ? NULL : "prctl"; }
static const char *check(void) { return prctl(PR_GET_DUMPABLE) == 0 ? NULL : "dumpable"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
