/* The first of many threads that goes on in a child signals all others at once: a pidfd that they wait for
 * is of a process that has ended, there. On one processor, so that the others have not gone on yet. */
#include "conform.h"
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>

enum { THREADS = 16 };
static int outside, sent;
static pid_t ids[THREADS];
static volatile int started, got[THREADS];
static __thread int me;

static void on_signal(int signal) { got[me] += signal == SIGUSR1; }

static void *waiter(void *number) {
    struct pollfd at = {.fd = outside, .events = POLLIN};
    me = (int)(intptr_t)number;
    ids[me] = (pid_t)syscall(SYS_gettid);
    __atomic_add_fetch(&started, 1, __ATOMIC_SEQ_CST);
    while (poll(&at, 1, -1) != 1) {
    }
    if (__atomic_exchange_n(&sent, 1, __ATOMIC_SEQ_CST) == 0) {
        for (int i = 0; i < THREADS; i++) syscall(SYS_tgkill, getpid(), ids[i], SIGUSR1);
    }
    for (;;) pause();
    return NULL;
}

static const char *one_processor(void) {
    cpu_set_t cpus;
    int first = 0;
    EXPECT(sched_getaffinity(0, sizeof cpus, &cpus) == 0);
    while (!CPU_ISSET(first, &cpus)) first++;
    CPU_ZERO(&cpus);
    CPU_SET(first, &cpus);
    EXPECT(sched_setaffinity(0, sizeof cpus, &cpus) == 0);
    return NULL;
}

static const char *setup(void) {
    pthread_t thread;
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    outside = (int)syscall(SYS_pidfd_open, pid, 0);
    EXPECT(pid > 0 && outside >= 0 && signal(SIGUSR1, on_signal) != SIG_ERR);
    TRY(one_processor());
    for (intptr_t i = 0; i < THREADS; i++) {
        EXPECT(pthread_create(&thread, NULL, waiter, (void *)i) == 0);
    }
    for (int i = 0; i < 5000 && started < THREADS; i++) usleep(1000);
    EXPECT(started == THREADS);
    return NULL;
}

static const char *check(void) {
    int expected = !is_parent();
    for (int i = 0; i < THREADS; i++) {
        for (int turn = 0; turn < 5000 && got[i] < expected; turn++) usleep(1000);
        EXPECT(got[i] == expected);
    }
    return NULL;
}

static const char *change(int n) { return n > 0 ? check() : "n"; }
static const char *verify(int n) { return n > 0 ? check() : "n"; }
