/* A root directory and a current directory of the process's own, below the node's. */
#include "conform.h"

static int tag = 2;

const char *files(void) {
    TRY(mkdir("jail", 0755) == 0 || errno == EEXIST ? NULL : "mkdir");
    TRY(mkdir("jail/inner", 0755) == 0 || errno == EEXIST ? NULL : "mkdir");
    TRY(mkdir("jail/proc", 0755) == 0 || errno == EEXIST ? NULL : "mkdir");
    return write_file("jail/inner/here", "jailed", 6);
}

static const char *setup(void) {
    EXPECT(chroot("jail") == 0 && chdir("/inner") == 0);
    return NULL;
}

static const char *holds(int wanted) {
    char text[64] = {0};
    EXPECT(tag == wanted && getcwd(text, sizeof text) != NULL && !strcmp(text, "/inner"));
    int fd = open("/inner/here", O_RDONLY);
    memset(text, 0, sizeof text);
    EXPECT(fd >= 0 && read(fd, text, 6) == 6 && !strcmp(text, "jailed") && close(fd) == 0);
    EXPECT(access("/bin/sh", F_OK) == -1 && access("../../bin/sh", F_OK) == -1);
    return NULL;
}

static const char *check(void) { return holds(2); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
