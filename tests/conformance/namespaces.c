/* Descriptors of the process's own namespaces: a child's are its own. */
#include "conform.h"
#include <linux/nsfs.h>
#include <sched.h>

static const char *const names[] = {"net", "mnt", "uts", "ipc", "pid", "cgroup", "user"};
#define COUNT (sizeof names / sizeof *names)
static int fds[COUNT], tag = 3;

static const char *setup(void) {
    char path[64];
    for (size_t i = 0; i < COUNT; i++) {
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        fds[i] = open(path, O_RDONLY | (i == 0 ? O_CLOEXEC : 0));
        EXPECT(fds[i] >= 0);
    }
    return NULL;
}

static const char *holds(int wanted) {
    char path[64];
    EXPECT(tag == wanted && is_cloexec(fds[0]) && !is_cloexec(fds[1]));
    for (size_t i = 0; i < COUNT; i++) {
        struct stat own, open_one;
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        EXPECT(stat(path, &own) == 0 && fstat(fds[i], &open_one) == 0);
        EXPECT(own.st_ino == open_one.st_ino);
    }
    EXPECT(ioctl(fds[0], NS_GET_NSTYPE) == CLONE_NEWNET);
    return setns(fds[2], CLONE_NEWUTS) == 0 ? NULL : "setns";
}

static const char *check(void) { return holds(3); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
