/* Timers of timer_create: an id that is not the first, one that beats, one that is armed for an
 * absolute time, one that is not armed, one that tells a thread. */
#include "conform.h"
#include <pthread.h>

static volatile sig_atomic_t beats, told;
static int beat_id, far_id, idle_id, thread_id;

/* The kernel's own ids: libc hides them. */
static int create(int clock, int how, int signo, int value) {
    struct sigevent event = {.sigev_notify = how, .sigev_signo = signo};
    int id = -1;
    event.sigev_value.sival_int = value;
    if (how == SIGEV_THREAD_ID) event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    return syscall(SYS_timer_create, clock, &event, &id) == 0 ? id : -1;
}

static const char *arm(int id, int flags, time_t s, long ns, long every_ns) {
    struct itimerspec times = {{0, every_ns}, {s, ns}};
    EXPECT(syscall(SYS_timer_settime, id, flags, &times, NULL) == 0);
    return NULL;
}

static void on_signal(int signo, siginfo_t *info, void *context) {
    (void)context;
    if (info->si_code != SI_TIMER) return;
    if (signo == SIGRTMIN + 1 && info->si_value.sival_int == 41) beats++;
    if (signo == SIGRTMIN + 2 && info->si_value.sival_int == 42) told++;
}

static const char *setup(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    struct timespec now;
    EXPECT(sigaction(SIGRTMIN + 1, &action, NULL) == 0);
    EXPECT(sigaction(SIGRTMIN + 2, &action, NULL) == 0);
    for (int i = 0; i < 5; i++) {
        int spare = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0);
        EXPECT(spare >= 0 && syscall(SYS_timer_delete, spare) == 0);
    }
    beat_id = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 41);
    far_id = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0);
    idle_id = create(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 1, 43);
    thread_id = create(CLOCK_BOOTTIME, SIGEV_THREAD_ID, SIGRTMIN + 2, 42);
    EXPECT(beat_id >= 5 && far_id > beat_id && idle_id > far_id && thread_id > idle_id);
    TRY(arm(beat_id, 0, 0, 20000000, 20000000));
    TRY(arm(thread_id, 0, 0, 30000000, 30000000));
    EXPECT(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return arm(far_id, TIMER_ABSTIME, now.tv_sec + 5000, 0, 0);
}

static const char *holds(long far) {
    struct itimerspec times;
    EXPECT(syscall(SYS_timer_gettime, far_id, &times) == 0);
    EXPECT(times.it_value.tv_sec > far - 1000 && times.it_value.tv_sec <= far);
    EXPECT(syscall(SYS_timer_gettime, idle_id, &times) == 0);
    EXPECT(times.it_value.tv_sec == 0 && times.it_value.tv_nsec == 0);
    EXPECT(syscall(SYS_timer_gettime, beat_id, &times) == 0);
    EXPECT(times.it_interval.tv_nsec == 20000000);
    int beats_before = beats, told_before = told;
    for (int i = 0; i < 1000 && (beats < beats_before + 3 || told < told_before + 3); i++)
        usleep(20000);
    EXPECT(beats >= beats_before + 3 && told >= told_before + 3);
    return NULL;
}

static const char *check(void) { return holds(5000); }
static const char *change(int n) { return arm(far_id, 0, 10000 * n, 0, 0); }
static const char *verify(int n) { return holds(10000 * n); }
