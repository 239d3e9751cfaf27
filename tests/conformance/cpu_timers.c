/* Timers on the clocks of the process's and of a thread's own CPU time. */
#include "conform.h"
#include <pthread.h>

static timer_t whole, thread;
static long period = 5000;

static const char *setup(void) {
    clockid_t clock;
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    struct itimerspec at = {.it_value.tv_sec = 5000, .it_interval.tv_sec = 7};
    EXPECT(pthread_getcpuclockid(pthread_self(), &clock) == 0);
    EXPECT(timer_create(clock, &none, &thread) == 0 && timer_settime(thread, 0, &at, NULL) == 0);
    EXPECT(timer_create(CLOCK_PROCESS_CPUTIME_ID, &none, &whole) == 0);
    return timer_settime(whole, 0, &at, NULL) == 0 ? NULL : "timer_settime";
}

static const char *holds(long seconds) {
    struct itimerspec now;
    EXPECT(timer_gettime(thread, &now) == 0 && now.it_interval.tv_sec == 7);
    EXPECT(now.it_value.tv_sec <= seconds && now.it_value.tv_sec > seconds - 100);
    EXPECT(timer_gettime(whole, &now) == 0 && now.it_interval.tv_sec == 7);
    EXPECT(now.it_value.tv_sec <= 5000 && now.it_value.tv_sec > 4900);
    return NULL;
}

static const char *check(void) { return holds(period); }
static const char *change(int n) {
    struct itimerspec at = {.it_value.tv_sec = period = 1000 * n, .it_interval.tv_sec = 7};
    return timer_settime(thread, 0, &at, NULL) == 0 ? NULL : "timer_settime";
}
static const char *verify(int n) { return holds(1000 * n); }
