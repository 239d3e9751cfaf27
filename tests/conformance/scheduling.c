/* How threads are scheduled: nice value, policy, I/O priority, the CPUs they may run on. */
#include "conform.h"
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

static pid_t batch_tid;

static const char *apply(pid_t tid, int policy, int nice_value, int io) {
    struct sched_param none = {0};
    EXPECT(sched_setscheduler(tid, policy, &none) == 0);
    EXPECT(setpriority(PRIO_PROCESS, (id_t)tid, nice_value) == 0);
    EXPECT(syscall(SYS_ioprio_set, 1, tid, 2 << 13 | io) == 0);
    return NULL;
}

static const char *is(pid_t tid, int policy, int nice_value, int io) {
    errno = 0;
    EXPECT(sched_getscheduler(tid) == policy);
    EXPECT(getpriority(PRIO_PROCESS, (id_t)tid) == nice_value && errno == 0);
    EXPECT(syscall(SYS_ioprio_get, 1, tid) == (2 << 13 | io));
    return NULL;
}

static void *idle(void *arg) {
    *(volatile pid_t *)arg = (pid_t)syscall(SYS_gettid);
    for (;;) pause();
    return NULL;
}

static const char *setup(void) {
    pthread_t thread;
    cpu_set_t one;
    EXPECT(pthread_create(&thread, NULL, idle, &batch_tid) == 0);
    while (*(volatile pid_t *)&batch_tid == 0) usleep(1000);
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    EXPECT(sched_setaffinity(0, sizeof one, &one) == 0);
    TRY(apply((pid_t)syscall(SYS_gettid), SCHED_OTHER, 7, 3));
    return apply(batch_tid, SCHED_BATCH, 3, 6);
}

static const char *holds(int nice_value) {
    cpu_set_t set;
    EXPECT(sched_getaffinity(0, sizeof set, &set) == 0);
    EXPECT(CPU_COUNT(&set) == 1 && CPU_ISSET(0, &set));
    EXPECT(sched_getaffinity(batch_tid, sizeof set, &set) == 0);
    EXPECT(CPU_COUNT(&set) == sysconf(_SC_NPROCESSORS_ONLN));
    TRY(is((pid_t)syscall(SYS_gettid), SCHED_OTHER, 7, 3));
    return is(batch_tid, SCHED_BATCH, nice_value, 6);
}

static const char *check(void) { return holds(3); }
static const char *change(int n) {
    return setpriority(PRIO_PROCESS, (id_t)batch_tid, 10 + n) == 0 ? NULL : "setpriority";
}
static const char *verify(int n) { return holds(10 + n); }
