/* Two hundred threads with names, masks and alternate stacks of their own, in different waits. */
#include "conform.h"
#include <pthread.h>
#include <semaphore.h>

#define THREADS 200
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
static int asked, answered, wrong_ones, ready, secret = 5;
static __thread int mine;

static int in_order(int n, pid_t tid, const char *name, void *stack) {
    char now[16];
    sigset_t mask;
    stack_t at;
    pthread_getname_np(pthread_self(), now, sizeof now);
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    sigaltstack(NULL, &at);
    return mine == n * 7 && tid == (pid_t)syscall(SYS_gettid) && !strcmp(name, now) &&
           at.ss_sp == stack && sigismember(&mask, SIGRTMIN + n % 20) == 1 &&
           sigismember(&mask, SIGRTMIN + (n + 1) % 20) == 0;
}

static void *worker(void *arg) {
    int n = (int)(intptr_t)arg, seen = 0;
    char name[16];
    sigset_t mask;
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    mine = n * 7;
    snprintf(name, sizeof name, "worker-%d", n);
    pthread_setname_np(pthread_self(), name);
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + n % 20);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    sigaltstack(&stack, NULL);
    pid_t tid = (pid_t)syscall(SYS_gettid);
    pthread_mutex_lock(&lock);
    for (ready++;;) {
        /* Half of them with a time-out, which must not be taken for a wake-up. */
        struct timespec far = {.tv_sec = time(NULL) + 100000};
        while (asked == seen)
            if (n % 2 == 0) pthread_cond_wait(&turn, &lock);
            else pthread_cond_timedwait(&turn, &lock, &far);
        seen = asked;
        if (!in_order(n, tid, name, stack.ss_sp)) wrong_ones++;
        answered++;
    }
    return NULL;
}

static const char *setup(void) {
    for (intptr_t n = 0; n < THREADS; n++) {
        pthread_t thread;
        EXPECT(pthread_create(&thread, NULL, worker, (void *)n) == 0);
    }
    for (int i = 0; i < 10000; i++) {
        pthread_mutex_lock(&lock);
        int all = ready == THREADS;
        pthread_mutex_unlock(&lock);
        if (all) return NULL;
        usleep(1000);
    }
    return "not all threads started";
}

static const char *holds(int wanted) {
    pthread_mutex_lock(&lock);
    answered = wrong_ones = 0;
    asked++;
    pthread_cond_broadcast(&turn);
    pthread_mutex_unlock(&lock);
    int done = 0, bad = 0;
    for (int i = 0; i < 20000 && done < THREADS; i++) {
        usleep(1000);
        pthread_mutex_lock(&lock);
        done = answered, bad = wrong_ones;
        pthread_mutex_unlock(&lock);
    }
    EXPECT(done == THREADS && bad == 0 && secret == wanted);
    return NULL;
}

static const char *check(void) { return holds(5); }
static const char *change(int n) {
    secret = 100 + n;
    return NULL;
}
static const char *verify(int n) { return holds(100 + n); }
