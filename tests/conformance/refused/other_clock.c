/* Refused: clock of process, another one, which no other node has. */
#include "conform.h"
#include <sys/prctl.h>

static timer_t timer;

static const char *setup(void) {
    clockid_t clock;
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    EXPECT(pid > 0 && clock_getcpuclockid(pid, &clock) == 0);
    EXPECT(timer_create(clock, &none, &timer) == 0);
    return NULL;
}

static const char *check(void) {
    struct itimerspec now;
    return timer_gettime(timer, &now) == 0 ? NULL : "timer_gettime";
}
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
