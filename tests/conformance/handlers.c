/* Signal handlers with their flags: on an alternate stack, with siginfo, once only; and a thread
 * that is inside of one. */
#include "conform.h"
#include <pthread.h>
#include <semaphore.h>
#include <ucontext.h>

static uint8_t stack_area[65536];
static volatile sig_atomic_t on_stack, told, once;
static volatile uintptr_t inside_at;
static sem_t leave, entered, left;
static int tag = 4;

static void with_info(int signal, siginfo_t *info, void *context) {
    uint8_t here;
    const ucontext_t *at = context;
    on_stack = &here >= stack_area && &here < stack_area + sizeof stack_area;
    told = signal == SIGRTMIN + 2 && at->uc_stack.ss_sp == stack_area ? info->si_value.sival_int : -1;
}

static void only_once(int signal) { once += signal == SIGUSR2; }

static void long_one(int signal) {
    uint8_t here;
    inside_at = (uintptr_t)&here + (uintptr_t)signal * 0;
    sem_post(&entered);
    while (sem_wait(&leave) != 0) {
    }
}

static void *inside(void *arg) {
    static uint8_t own[65536];
    stack_t stack = {.ss_sp = own, .ss_size = sizeof own};
    double values[4] = {1.5, 2.5, 3.5, 4.5};
    sigaltstack(&stack, NULL);
    raise(SIGRTMIN + 3);
    if (values[0] + values[1] + values[2] + values[3] == 12.0) sem_post(&left);
    return arg;
}

static const char *setup(void) {
    stack_t stack = {.ss_sp = stack_area, .ss_size = sizeof stack_area};
    struct sigaction info = {.sa_sigaction = with_info, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction reset = {.sa_handler = only_once, .sa_flags = (int)SA_RESETHAND};
    struct sigaction deep = {.sa_handler = long_one, .sa_flags = SA_ONSTACK | SA_RESTART};
    pthread_t thread;
    sigaddset(&info.sa_mask, SIGHUP);
    EXPECT(sigaltstack(&stack, NULL) == 0 && sigaction(SIGRTMIN + 2, &info, NULL) == 0);
    EXPECT(sigaction(SIGUSR2, &reset, NULL) == 0 && sigaction(SIGRTMIN + 3, &deep, NULL) == 0);
    EXPECT(sem_init(&leave, 0, 0) == 0 && sem_init(&entered, 0, 0) == 0 && sem_init(&left, 0, 0) == 0);
    EXPECT(pthread_create(&thread, NULL, inside, NULL) == 0);
    return sem_wait(&entered) == 0 ? NULL : "sem_wait";
}

static const char *holds(int wanted) {
    struct sigaction now;
    EXPECT(tag == wanted);
    EXPECT(sigaction(SIGRTMIN + 2, NULL, &now) == 0 && sigismember(&now.sa_mask, SIGHUP) == 1);
    EXPECT(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = wanted}) == 0);
    EXPECT(on_stack == 1 && told == wanted);
    return NULL;
}

static const char *check(void) {
    EXPECT(once == 0);
    return holds(4);
}

static const char *change(int n) {
    EXPECT(sem_post(&leave) == 0);
    struct timespec far = {.tv_sec = time(NULL) + 20};
    EXPECT(sem_timedwait(&left, &far) == 0);
    EXPECT(raise(SIGUSR2) == 0 && once == 1);
    tag = 10 + n;
    return NULL;
}

static const char *verify(int n) {
    struct sigaction now;
    EXPECT(sigaction(SIGUSR2, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
    return holds(10 + n);
}
