/* A thread in seccomp's strict mode, beside one with a filter and one with neither: it still reads and
 * writes, and whatever else it calls is its end, and its alone. */
#include "confined.h"
#include <pthread.h>
#include <semaphore.h>

static int error_there;
static sem_t ask, answer;
static volatile pid_t strict_one;

static void *strict(void *arg) {
    strict_one = (pid_t)syscall(SYS_gettid);
    obey_in_strict_mode();
    return arg;
}

static void *filtered(void *arg) {
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (forbid(SYS_acct, EXDEV, 0) != NULL) return arg;
    for (;;) {
        sem_post(&answer);
        while (sem_wait(&ask) != 0) {
        }
        error_there = syscall(SYS_acct, "/nowhere") == -1 ? errno : 0;
    }
    return arg;
}

static const char *setup(void) {
    pthread_t id;
    EXPECT(sem_init(&ask, 0, 0) == 0 && sem_init(&answer, 0, 0) == 0);
    EXPECT(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
    EXPECT(pthread_create(&id, NULL, strict, NULL) == 0);
    EXPECT(pthread_create(&id, NULL, filtered, NULL) == 0);
    EXPECT(sem_wait(&answer) == 0);
    return tells('=', 7);
}

static const char *holds(int n) {
    EXPECT(sem_post(&ask) == 0 && sem_wait(&answer) == 0 && error_there == EXDEV);
    EXPECT(mode_of((pid_t)syscall(SYS_gettid)) == 0);
    EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0);
    EXPECT(mode_of(strict_one) == (n == 1 ? -1 : SECCOMP_MODE_STRICT));
    return n == 1 ? NULL : tells('=', n == 2 ? 8 : 7);
}

static const char *check(void) { return holds(0); }
static const char *change(int n) {
    if (n != 1) return tells('+', 8);
    uint8_t end = 'e';
    EXPECT(write(to[1], &end, 1) == 1);
    for (int i = 0; i < 5000 && mode_of(strict_one) != -1; i++) usleep(1000);
    return NULL;
}
static const char *verify(int n) { return holds(n); }
