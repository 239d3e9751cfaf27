/* Restartable sequences: each thread's area is registered and says on which CPU it runs. */
#include "conform.h"
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/rseq.h>

static sem_t ask, answer;
static int fine, tag = 6;

static struct rseq *area(void) {
    return (struct rseq *)((uint8_t *)__builtin_thread_pointer() + __rseq_offset);
}

static int registered(void) {
    for (int i = 0; i < 200; i++) {
        unsigned cpu, before = area()->cpu_id;
        if (syscall(SYS_getcpu, &cpu, NULL, NULL) != 0) return 0;
        if (area()->cpu_id == before && cpu == before) return __rseq_size > 0;
    }
    return 0;
}

static void *other(void *arg) {
    for (;;) {
        while (sem_wait(&ask) != 0) {
        }
        fine = registered();
        sem_post(&answer);
    }
    return arg;
}

static const char *setup(void) {
    pthread_t thread;
    EXPECT(sem_init(&ask, 0, 0) == 0 && sem_init(&answer, 0, 0) == 0);
    return pthread_create(&thread, NULL, other, NULL) == 0 ? NULL : "pthread_create";
}

static const char *holds(int wanted) {
    EXPECT(registered() && tag == wanted && sched_getcpu() >= 0);
    fine = 0;
    EXPECT(sem_post(&ask) == 0 && sem_wait(&answer) == 0 && fine == 1);
    /* It cannot be registered twice. */
    EXPECT(syscall(SYS_rseq, area(), 32, 0, 0x53053053) == -1);
    return NULL;
}

static const char *check(void) { return holds(6); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
