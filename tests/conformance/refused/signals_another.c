/* Refused: signals another process, which no other node has. */
#include "conform.h"
#include <sys/prctl.h>

static int ends[2];

static const char *setup(void) {
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGIO, SIG_IGN);
        for (;;) pause();
    }
    EXPECT(pid > 0 && pipe(ends) == 0 && fcntl(ends[0], F_SETOWN, pid) == 0);
    return fcntl(ends[0], F_SETFL, O_ASYNC) == 0 ? NULL : "O_ASYNC";
}

static const char *check(void) { return flags_of(ends[0]) & O_ASYNC ? NULL : "O_ASYNC"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
