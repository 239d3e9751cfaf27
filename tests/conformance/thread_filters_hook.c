/* A thread with a filter of its own, and a hook of the program: when that runs, the thread is confined already. */
#include "confined.h"
#include <pthread.h>
#include <semaphore.h>

static sem_t confined;
static volatile pid_t other;
static volatile int hooked, filtered;

__attribute__((visibility("default"))) int mitosis_after_fork(uint64_t number) {
    hooked += number != 0;
    filtered += mode_of(other) == SECCOMP_MODE_FILTER;
    return 0;
}

static void *thread(void *arg) {
    if (forbid(SYS_swapoff, EXDEV, 0) == NULL) other = gettid();
    sem_post(&confined);
    for (;;) pause();
    return arg;
}

static const char *setup(void) {
    pthread_t id;
    EXPECT(sem_init(&confined, 0, 0) == 0 && pthread_create(&id, NULL, thread, NULL) == 0);
    while (sem_wait(&confined) != 0) {
    }
    EXPECT(other != 0 && mode_of(other) == SECCOMP_MODE_FILTER && mode_of(getpid()) == 0);
    return NULL;
}

static const char *check(void) {
    EXPECT(mode_of(other) == SECCOMP_MODE_FILTER && mode_of(getpid()) == 0);
    EXPECT(filtered == hooked);
    return NULL;
}
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) {
    EXPECT(n && hooked > 0);
    return check();
}
