/* Threads with seccomp filters of their own beside those that all have, and with no_new_privs or without it:
 * each keeps what it had, and no other one gets it. */
#include "confined.h"
#include <pthread.h>
#include <semaphore.h>

#define THREADS 5
static sem_t ask[THREADS], answer;
static int wish, new_error;

/* What a thread finds forbidden: errors that only a filter gives, or 0. */
struct found {
    int swapoff, acct, pivot_root, seccomp, no_new_privs;
};
static struct found found[THREADS];

static int error_of(long result) {
    int from_filter = errno == ENOTTY || errno == EXDEV || errno == EBADRQC || errno == EBADSLT;
    return result == -1 && from_filter ? errno : 0;
}

static struct found look(void) {
    return (struct found){
        .swapoff = error_of(syscall(SYS_swapoff, "/nowhere")),
        .acct = error_of(syscall(SYS_acct, "/nowhere")),
        .pivot_root = error_of(syscall(SYS_pivot_root, "/nowhere", "/nowhere")),
        .seccomp = error_of(syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, NULL)),
        .no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
    };
}

/* 0 and 1 have nothing of their own at first. */
static const char *confine(int n) {
    switch (n) {
    case 2: return forbid(SYS_acct, EXDEV, 0);
    case 3: EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0); return NULL;
    case 4:
        EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        TRY(forbid(SYS_acct, EBADRQC, 0));
        return forbid(SYS_seccomp, EBADSLT, 0);
    }
    return NULL;
}

static void *thread(void *arg) {
    int n = (int)(intptr_t)arg;
    const char *failed = confine(n);
    if (failed != NULL) dprintf(1, "thread %d: %s\n", n, failed);
    for (;;) {
        sem_post(&answer);
        while (sem_wait(&ask[n]) != 0) {
        }
        if (wish) failed = forbid(SYS_pivot_root, new_error, 0);
        found[n] = look();
        if (failed != NULL) found[n].swapoff = -1;
    }
    return NULL;
}

static const char *told(int n) {
    EXPECT(sem_post(&ask[n]) == 0);
    while (sem_wait(&answer) != 0) {
    }
    return NULL;
}

static const char *setup(void) {
    EXPECT(sem_init(&answer, 0, 0) == 0);
    TRY(forbid(SYS_swapoff, ENOTTY, SECCOMP_FILTER_FLAG_TSYNC));
    for (intptr_t n = 1; n < THREADS; n++) {
        pthread_t id;
        EXPECT(sem_init(&ask[n], 0, 0) == 0);
        EXPECT(pthread_create(&id, NULL, thread, (void *)n) == 0);
        while (sem_wait(&answer) != 0) {
        }
    }
    return NULL;
}

static const char *holds(int changed) {
    int pivot_root = changed == 0 ? 0 : changed == 1 ? EBADRQC : EBADSLT;
    for (int n = 1; n < THREADS; n++) TRY(told(n));
    found[0] = look();
    for (int n = 0; n < THREADS; n++) {
        EXPECT(found[n].swapoff == ENOTTY);
        EXPECT(found[n].acct == (n == 2 ? EXDEV : n == 4 ? EBADRQC : 0));
        EXPECT(found[n].seccomp == (n == 4 ? EBADSLT : 0));
        EXPECT(found[n].pivot_root == (n == 1 ? pivot_root : 0));
        EXPECT(found[n].no_new_privs == (n >= 3));
    }
    return NULL;
}

static const char *check(void) { return holds(0); }
static const char *change(int n) {
    new_error = n == 1 ? EBADRQC : EBADSLT;
    wish = 1;
    TRY(told(1));
    wish = 0;
    return NULL;
}
static const char *verify(int n) { return holds(n); }
