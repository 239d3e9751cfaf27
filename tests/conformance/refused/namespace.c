/* Refused: namespace, of another process, which no other node has. */
#include "conform.h"
#include <sched.h>
#include <sys/prctl.h>

static int fd;

static const char *setup(void) {
    int ready[2];
    char path[64], byte;
    EXPECT(pipe(ready) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (unshare(CLONE_NEWUTS) != 0 || write(ready[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    EXPECT(pid > 0 && read(ready[0], &byte, 1) == 1);
    snprintf(path, sizeof path, "/proc/%d/ns/uts", (int)pid);
    fd = open(path, O_RDONLY);
    EXPECT(fd >= 0);
    return NULL;
}

static const char *check(void) { return fcntl(fd, F_GETFD) == 0 ? NULL : "F_GETFD"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
