/* Refused: pidfd of another process, which no other node has. */
#include "conform.h"
#include <sys/prctl.h>

static int fd;

static const char *setup(void) {
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    fd = (int)syscall(SYS_pidfd_open, pid, 0);
    EXPECT(pid > 0 && fd >= 0);
    return NULL;
}

static const char *check(void) { return readable(fd) ? "it ended" : NULL; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
