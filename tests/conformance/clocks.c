/* Clocks that count from the start of a machine: they do not run backwards and do not jump, the
 * vdso and the kernel agree, and waits until a date on them are still waits until that date. */
#include "conform.h"
#include <pthread.h>
#include <sys/timerfd.h>

#define LONG 4000 /* seconds that no run of the tests takes */
static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE};
static int64_t seen[3], until, date;
static int timer = -1;
static int woken;
static pthread_cond_t never;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static int64_t nanos(struct timespec at) { return at.tv_sec * 1000000000LL + at.tv_nsec; }
static struct timespec split(int64_t at) {
    return (struct timespec){.tv_sec = at / 1000000000, .tv_nsec = at % 1000000000};
}
static int64_t vdso(clockid_t clock) {
    struct timespec at;
    return clock_gettime(clock, &at) == 0 ? nanos(at) : -1;
}
static int64_t kernel(clockid_t clock) {
    struct timespec at;
    return syscall(SYS_clock_gettime, clock, &at) == 0 ? nanos(at) : -1;
}

static void *sleeps(void *unused) {
    (void)unused;
    struct timespec at = split(until);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) {}
    woken = 1;
    return NULL;
}
static void *waits(void *unused) {
    (void)unused;
    struct timespec at = split(until);
    pthread_mutex_lock(&mutex);
    while (pthread_cond_timedwait(&never, &mutex, &at) == 0) {}
    woken = 2;
    pthread_mutex_unlock(&mutex);
    return NULL;
}

static const char *arm(int64_t at) {
    struct itimerspec spec = {.it_value = split(at)};
    date = at;
    return timerfd_settime(timer, TFD_TIMER_ABSTIME, &spec, NULL) == 0 ? NULL : "timerfd_settime";
}

static const char *setup(void) {
    pthread_condattr_t attributes;
    pthread_t thread;
    EXPECT(pthread_condattr_init(&attributes) == 0);
    EXPECT(pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0);
    EXPECT(pthread_cond_init(&never, &attributes) == 0);
    until = vdso(CLOCK_MONOTONIC) + LONG * 1000000000LL;
    EXPECT(pthread_create(&thread, NULL, sleeps, NULL) == 0);
    EXPECT(pthread_create(&thread, NULL, waits, NULL) == 0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    EXPECT(timer >= 0);
    for (int i = 0; i < 3; i++) seen[i] = vdso(clocks[i]);
    return arm(until);
}

static const char *check(void) {
    struct itimerspec left;
    struct timespec at;
    int64_t second = 1000000000;
    for (int i = 0; i < 3; i++) {
        int64_t a = vdso(clocks[i]), b = kernel(clocks[i]), c = vdso(clocks[i]);
        EXPECT(a >= seen[i] && a - seen[i] < LONG / 4 * second);
        EXPECT(a <= b && b <= c && c - a < 10 * second);
        seen[i] = c;
    }
    FILE *file = fopen("/proc/uptime", "re");
    double uptime = 0;
    EXPECT(file != NULL && fscanf(file, "%lf", &uptime) == 1 && fclose(file) == 0);
    int64_t off = (int64_t)(uptime * 1e9) - vdso(CLOCK_BOOTTIME);
    EXPECT(off > -2 * second && off < 2 * second);
    int64_t soon = vdso(CLOCK_MONOTONIC) + 2000000;
    at = split(soon);
    EXPECT(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == 0);
    int64_t late = vdso(CLOCK_MONOTONIC) - soon;
    EXPECT(late >= 0 && late < 20 * second);
    EXPECT(timerfd_gettime(timer, &left) == 0);
    off = vdso(CLOCK_MONOTONIC) + nanos(left.it_value) - date;
    EXPECT(off > -second && off < second);
    EXPECT(woken == 0);
    return NULL;
}

static const char *change(int n) { return arm(until + n * 100 * 1000000000LL); }

static const char *verify(int n) {
    EXPECT(date == until + n * 100 * 1000000000LL);
    return check();
}
