/* A hundred queued signals, each with its value, in their order; and a limit on them. */
#include "conform.h"
#include <sys/resource.h>

#define COUNT 100
static int base = 0;

static const char *setup(void) {
    sigset_t set;
    struct rlimit limit = {2000, 2000};
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    EXPECT(sigprocmask(SIG_BLOCK, &set, NULL) == 0 && setrlimit(RLIMIT_SIGPENDING, &limit) == 0);
    for (int i = 0; i < COUNT; i++)
        EXPECT(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = i}) == 0);
    return NULL;
}

/* Takes all and queues them again. */
static const char *check(void) {
    struct timespec none = {0, 0};
    sigset_t set;
    siginfo_t info;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    for (int i = 0; i < COUNT; i++) {
        EXPECT(sigtimedwait(&set, &info, &none) == SIGRTMIN + 5);
        EXPECT(info.si_value.sival_int == base + i && info.si_code == SI_QUEUE);
    }
    EXPECT(sigtimedwait(&set, &info, &none) == -1);
    for (int i = 0; i < COUNT; i++)
        EXPECT(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = base + i}) == 0);
    return NULL;
}

static const char *change(int n) {
    struct timespec none = {0, 0};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    for (int i = 0; i < COUNT; i++) EXPECT(sigtimedwait(&set, NULL, &none) == SIGRTMIN + 5);
    base = 1000 * n;
    for (int i = 0; i < COUNT; i++)
        EXPECT(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = base + i}) == 0);
    return NULL;
}

static const char *verify(int n) {
    EXPECT(base == 1000 * n);
    return check();
}
