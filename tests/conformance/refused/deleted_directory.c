/* Refused: directory, that was deleted while the process was in it: no path leads there. */
#include "conform.h"

static const char *setup(void) {
    EXPECT(mkdir("gone", 0755) == 0 && chdir("gone") == 0 && rmdir("../gone") == 0);
    return NULL;
}

static const char *check(void) {
    char path[4096];
    return getcwd(path, sizeof path) == NULL && errno == ENOENT ? NULL : "getcwd";
}

static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
