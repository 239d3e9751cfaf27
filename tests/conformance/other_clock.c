/* A timer on the CPU clock of another process: to a child that has ended, and the timer never expires. */
#include "conform.h"
#include <sys/prctl.h>
#include <sys/wait.h>

static timer_t other, own;

static const char *setup(void) {
    clockid_t clock;
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    struct itimerspec at = {.it_value.tv_sec = 5000};
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    EXPECT(pid > 0 && clock_getcpuclockid(pid, &clock) == 0);
    EXPECT(timer_create(clock, &none, &other) == 0 && timer_settime(other, 0, &at, NULL) == 0);
    EXPECT(clock_getcpuclockid(getpid(), &clock) == 0);
    EXPECT(timer_create(clock, &none, &own) == 0 && timer_settime(own, 0, &at, NULL) == 0);
    return NULL;
}

static const char *check(void) {
    struct itimerspec now, at = {.it_value.tv_sec = 4000};
    EXPECT(timer_gettime(own, &now) == 0 && now.it_value.tv_sec > 4900);
    EXPECT(timer_gettime(other, &now) == 0);
    if (is_parent()) return now.it_value.tv_sec > 4900 ? NULL : "it runs";
    EXPECT(now.it_value.tv_sec == 0 && now.it_value.tv_nsec == 0);
    EXPECT(timer_settime(other, 0, &at, NULL) == -1 && errno == ESRCH);
    return NULL;
}
static const char *change(int n) {
    EXPECT(n > 0 && timer_delete(other) == 0);
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    return timer_create(CLOCK_MONOTONIC, &none, &other) == 0 ? NULL : "timer_create";
}
static const char *verify(int n) {
    struct itimerspec at = {.it_value.tv_sec = 4000};
    EXPECT(n > 0 && timer_settime(other, 0, &at, NULL) == 0);
    EXPECT(waitpid(-1, NULL, __WALL | WNOHANG) == -1 && errno == ECHILD);
    return NULL;
}
