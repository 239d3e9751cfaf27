/* Mutexes: one that is held by a thread that waits and is robust, so that its death is told; one
 * with priority inheritance, held and waited for. */
#include "conform.h"
#include <pthread.h>
#include <semaphore.h>

static pthread_mutex_t robust, inherit;
static sem_t die, give, given, holding, got;
static int outcome, tag = 1;

static void *holder(void *arg) {
    pthread_mutex_lock(&robust);
    sem_post(&holding);
    while (sem_wait(&die) != 0) {
    }
    return arg; /* Holding it. */
}

static void *inheriting(void *arg) {
    pthread_mutex_lock(&inherit);
    sem_post(&holding);
    while (sem_wait(&give) != 0) {
    }
    outcome = pthread_mutex_unlock(&inherit);
    sem_post(&given);
    return arg;
}

static void *waiter(void *arg) {
    sem_post(&holding);
    if (pthread_mutex_lock(&inherit) == 0 && pthread_mutex_unlock(&inherit) == 0) sem_post(&got);
    return arg;
}

static const char *soon(sem_t *semaphore) {
    struct timespec far = {.tv_sec = time(NULL) + 20};
    while (sem_timedwait(semaphore, &far) != 0) EXPECT(errno == EINTR);
    return NULL;
}

static const char *setup(void) {
    pthread_mutexattr_t attr;
    pthread_t thread;
    EXPECT(pthread_mutexattr_init(&attr) == 0);
    EXPECT(pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST) == 0);
    EXPECT(pthread_mutex_init(&robust, &attr) == 0);
    EXPECT(pthread_mutexattr_init(&attr) == 0);
    EXPECT(pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT) == 0);
    EXPECT(pthread_mutex_init(&inherit, &attr) == 0);
    sem_t *all[] = {&die, &give, &given, &holding, &got};
    for (int i = 0; i < 5; i++) EXPECT(sem_init(all[i], 0, 0) == 0);
    void *(*work[])(void *) = {holder, inheriting, waiter};
    for (int i = 0; i < 3; i++) {
        EXPECT(pthread_create(&thread, NULL, work[i], NULL) == 0);
        TRY(soon(&holding));
    }
    return usleep(50000) == 0 ? NULL : "usleep";
}

static const char *check(void) {
    EXPECT(tag == 1 && pthread_mutex_trylock(&robust) == EBUSY);
    EXPECT(pthread_mutex_trylock(&inherit) == EBUSY && sem_trywait(&got) == -1);
    return NULL;
}

static const char *change(int n) {
    EXPECT(sem_post(&die) == 0);
    struct timespec far = {.tv_sec = time(NULL) + 20};
    EXPECT(pthread_mutex_timedlock(&robust, &far) == EOWNERDEAD);
    EXPECT(pthread_mutex_consistent(&robust) == 0 && pthread_mutex_unlock(&robust) == 0);
    EXPECT(sem_post(&give) == 0);
    TRY(soon(&given));
    TRY(soon(&got));
    EXPECT(outcome == 0);
    tag = 10 + n;
    return NULL;
}

static const char *verify(int n) {
    EXPECT(tag == 10 + n);
    EXPECT(pthread_mutex_lock(&robust) == 0 && pthread_mutex_unlock(&robust) == 0);
    EXPECT(pthread_mutex_lock(&inherit) == 0 && pthread_mutex_unlock(&inherit) == 0);
    return NULL;
}
