/* Interval timers: one that beats while the program runs, one that counts CPU time, one that is far
 * away. */
#include "conform.h"
#include <sys/time.h>

static volatile sig_atomic_t beats, profiled;

static void on_beat(int signo) { (void)signo, beats++; }
static void on_profile(int signo) { (void)signo, profiled++; }

static const char *set(int which, long every_us, long first_s, long first_us) {
    struct itimerval timer = {{0, every_us}, {first_s, first_us}};
    EXPECT(setitimer(which, &timer, NULL) == 0);
    return NULL;
}

static const char *setup(void) {
    struct sigaction beat = {.sa_handler = on_beat, .sa_flags = SA_RESTART};
    struct sigaction profile = {.sa_handler = on_profile, .sa_flags = SA_RESTART};
    EXPECT(sigaction(SIGALRM, &beat, NULL) == 0 && sigaction(SIGPROF, &profile, NULL) == 0);
    TRY(set(ITIMER_REAL, 20000, 0, 20000));
    TRY(set(ITIMER_PROF, 10000, 0, 10000));
    return set(ITIMER_VIRTUAL, 5, 5000, 7);
}

static const char *holds(long far, long every) {
    struct itimerval timer;
    EXPECT(getitimer(ITIMER_VIRTUAL, &timer) == 0 && timer.it_interval.tv_usec == 5);
    EXPECT(timer.it_value.tv_sec > far - 1000 && timer.it_value.tv_sec <= far);
    EXPECT(getitimer(ITIMER_REAL, &timer) == 0 && timer.it_interval.tv_usec == every);
    int before = beats;
    for (int i = 0; i < 1000 && beats < before + 3; i++) usleep(20000);
    EXPECT(beats >= before + 3);
    before = profiled;
    for (volatile long i = 0; i < 4000000000 && profiled == before; i++) continue;
    EXPECT(profiled > before);
    return NULL;
}

static const char *check(void) { return holds(5000, 20000); }
static const char *change(int n) {
    TRY(set(ITIMER_REAL, 20000 + n, 0, 20000));
    return set(ITIMER_VIRTUAL, 5, 10000 * n, 0);
}
static const char *verify(int n) { return holds(10000 * n, 20000 + n); }
