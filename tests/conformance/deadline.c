/* Threads under SCHED_DEADLINE: the main one, which may make nothing, and another that may. */
#include "conform.h"
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>

struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

#define MS 1000000ull
static pid_t other;
static uint64_t runtime = 2 * MS;

static const char *reserve(pid_t tid, uint64_t flags, uint64_t each) {
    struct attributes all = {.size = sizeof all, .policy = SCHED_DEADLINE, .flags = flags,
                             .runtime = each, .deadline = 30 * MS, .period = 40 * MS};
    return syscall(SYS_sched_setattr, tid, &all, 0) == 0 ? NULL : "sched_setattr";
}

static void *idle(void *arg) {
    *(volatile pid_t *)arg = (pid_t)syscall(SYS_gettid);
    for (;;) pause();
    return NULL;
}

static const char *setup(void) {
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, idle, &other) == 0);
    while (*(volatile pid_t *)&other == 0) usleep(1000);
    TRY(reserve(other, SCHED_FLAG_RESET_ON_FORK, runtime));
    return reserve(0, 0, 3 * MS);
}

static const char *is(pid_t tid, uint64_t flags, uint64_t each) {
    struct attributes all = {0};
    EXPECT(syscall(SYS_sched_getattr, tid, &all, sizeof all, 0) == 0);
    EXPECT(all.policy == SCHED_DEADLINE && all.flags == flags);
    EXPECT(all.runtime == each && all.deadline == 30 * MS && all.period == 40 * MS);
    return NULL;
}

static const char *holds(uint64_t wanted) {
    EXPECT(runtime == wanted);
    TRY(is(0, 0, 3 * MS));
    TRY(is(other, SCHED_FLAG_RESET_ON_FORK, wanted));
    EXPECT(fork() == -1 && errno == EAGAIN);
    return NULL;
}

static const char *check(void) { return holds(2 * MS); }
static const char *change(int n) {
    runtime = (uint64_t)(2 + n) * MS / 2;
    return reserve(other, SCHED_FLAG_RESET_ON_FORK, runtime);
}
static const char *verify(int n) { return holds((uint64_t)(2 + n) * MS / 2); }
