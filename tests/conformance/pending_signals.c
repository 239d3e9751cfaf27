/* Signals that wait because they are blocked, with what was sent along: for the process and for one
 * thread, some of them several times. */
#include "conform.h"
#include <pthread.h>

static int queued = SIGUSR1, times;

static const char *send_to(pid_t tid, int signo, int value) {
    siginfo_t info = {.si_signo = signo, .si_code = SI_QUEUE};
    info.si_pid = getpid();
    info.si_uid = 12345;
    info.si_value.sival_int = value;
    long done = tid == 0 ? syscall(SYS_rt_sigqueueinfo, getpid(), signo, &info)
                         : syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, signo, &info);
    EXPECT(done == 0);
    return NULL;
}

static const char *fill_queues(int base) {
    TRY(send_to(0, queued, base));
    TRY(send_to(0, SIGRTMIN + 3, base + 1));
    TRY(send_to(0, SIGRTMIN + 3, base + 2));
    return send_to((pid_t)syscall(SYS_gettid), SIGRTMIN + 4, base + 3);
}

static const char *take(int signo, int value) {
    sigset_t one;
    siginfo_t info;
    struct timespec now = {0, 0};
    sigemptyset(&one);
    sigaddset(&one, signo);
    EXPECT(sigtimedwait(&one, &info, &now) == signo);
    EXPECT(info.si_code == SI_QUEUE && info.si_uid == 12345);
    EXPECT(info.si_value.sival_int == value);
    return NULL;
}

static const char *setup(void) {
    sigset_t all;
    sigemptyset(&all);
    sigaddset(&all, queued);
    sigaddset(&all, SIGRTMIN + 3);
    sigaddset(&all, SIGRTMIN + 4);
    EXPECT(sigprocmask(SIG_BLOCK, &all, NULL) == 0);
    return fill_queues(100);
}

static const char *holds(int base) {
    TRY(take(queued, base));
    TRY(take(SIGRTMIN + 3, base + 1));
    TRY(take(SIGRTMIN + 3, base + 2));
    TRY(take(SIGRTMIN + 4, base + 3));
    times++;
    return fill_queues(base);
}

static const char *check(void) { return holds(100); }
static const char *change(int n) {
    TRY(holds(100));
    TRY(take(queued, 100));
    TRY(take(SIGRTMIN + 3, 101));
    TRY(take(SIGRTMIN + 3, 102));
    TRY(take(SIGRTMIN + 4, 103));
    return fill_queues(1000 * n);
}
static const char *verify(int n) { return holds(1000 * n); }
