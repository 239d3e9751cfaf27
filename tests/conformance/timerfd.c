/* Timerfds: running with an interval, disarmed, expired and unread, and set to a date. */
#include "conform.h"
#include <sys/timerfd.h>

static int running, disarmed, expired, dated;
static time_t date;
static long interval = 1000;

static const char *setup(void) {
    struct itimerspec spec = {.it_value.tv_sec = 5000, .it_interval.tv_sec = interval};
    struct itimerspec soon = {.it_value.tv_nsec = 1000, .it_interval.tv_sec = 9000};
    running = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    disarmed = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK);
    expired = timerfd_create(CLOCK_MONOTONIC, 0);
    dated = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
    EXPECT(running >= 0 && disarmed >= 0 && expired >= 0 && dated >= 0);
    EXPECT(timerfd_settime(running, 0, &spec, NULL) == 0);
    EXPECT(timerfd_settime(expired, 0, &soon, NULL) == 0);
    struct pollfd at = {.fd = expired, .events = POLLIN};
    EXPECT(poll(&at, 1, 5000) == 1);
    /* The clocks of two machines may be hours apart. */
    date = time(NULL) + 70000;
    spec = (struct itimerspec){.it_value.tv_sec = date};
    EXPECT(timerfd_settime(dated, TFD_TIMER_ABSTIME, &spec, NULL) == 0);
    return NULL;
}

static const char *check(void) {
    struct itimerspec left;
    uint64_t ticks;
    EXPECT(timerfd_gettime(running, &left) == 0 && left.it_interval.tv_sec == interval);
    EXPECT(left.it_value.tv_sec > 3000 && left.it_value.tv_sec <= 5000 && is_cloexec(running));
    EXPECT(read(running, &ticks, 8) == -1 && errno == EAGAIN);
    EXPECT(timerfd_gettime(disarmed, &left) == 0 && left.it_value.tv_sec == 0);
    EXPECT(readable(expired) && !(flags_of(expired) & O_NONBLOCK));
    EXPECT(timerfd_gettime(dated, &left) == 0 && left.it_interval.tv_sec == 0);
    long off = time(NULL) + left.it_value.tv_sec - date;
    EXPECT(off >= -2 && off <= 2);
    return NULL;
}

static const char *change(int n) {
    struct itimerspec spec = {.it_value.tv_sec = 4000};
    interval = 2000 + n;
    spec.it_interval.tv_sec = interval;
    return timerfd_settime(running, 0, &spec, NULL) == 0 ? NULL : "timerfd_settime";
}

static const char *verify(int n) {
    EXPECT(interval == 2000 + n);
    return check();
}
