/* Memory policies: of threads, and where a machine has several memory nodes of ranges. */
#include "conform.h"
#include <pthread.h>
#include <semaphore.h>

#define BIND 2
#define INTERLEAVE 3
static sem_t ask, answer;
static int others = -1, tag = INTERLEAVE;

static int mode(void) {
    int now = -1;
    unsigned long nodes[16] = {0};
    return syscall(SYS_get_mempolicy, &now, nodes, 1024, NULL, 0) == 0 ? now : -1;
}

static void *other(void *arg) {
    unsigned long first = 1;
    syscall(SYS_set_mempolicy, BIND, &first, 65);
    for (;;) {
        sem_post(&answer);
        while (sem_wait(&ask) != 0) {
        }
        others = mode();
    }
    return arg;
}

static const char *setup(void) {
    pthread_t thread;
    unsigned long first = 1;
    EXPECT(sem_init(&ask, 0, 0) == 0 && sem_init(&answer, 0, 0) == 0);
    EXPECT(pthread_create(&thread, NULL, other, NULL) == 0 && sem_wait(&answer) == 0);
    return syscall(SYS_set_mempolicy, INTERLEAVE, &first, 65) == 0 ? NULL : "set_mempolicy";
}

static const char *holds(int wanted) {
    EXPECT(tag == wanted && mode() == wanted);
    EXPECT(sem_post(&ask) == 0 && sem_wait(&answer) == 0 && others == BIND);
    return NULL;
}

static const char *check(void) { return holds(INTERLEAVE); }
static const char *change(int n) {
    unsigned long first = 1;
    tag = n == 1 ? BIND : 0;
    EXPECT(syscall(SYS_set_mempolicy, tag, n == 1 ? &first : NULL, n == 1 ? 65 : 0) == 0);
    return NULL;
}
static const char *verify(int n) { return holds(n == 1 ? BIND : 0); }
