/* A process as a container has it, uid 1000 without capabilities: the filter came with
 * CAP_SYS_ADMIN, which is given away, and there is no no_new_privs. In all its threads. */
#include "container.h"
#include <pthread.h>
#include <semaphore.h>

enum { UID = 1000, GID = 1001 };
static sem_t ask, answer;
static const char *theirs;
static int tag = 4;

static void *other(void *arg) {
    for (;;) {
        while (sem_wait(&ask) != 0) {
        }
        theirs = in_container(UID, GID);
        sem_post(&answer);
    }
    return arg;
}

static const char *setup(void) {
    pthread_t thread;
    EXPECT(sem_init(&ask, 0, 0) == 0 && sem_init(&answer, 0, 0) == 0);
    TRY(enter_container(UID, GID));
    for (int n = 0; n < 3; n++) EXPECT(pthread_create(&thread, NULL, other, NULL) == 0);
    return NULL;
}

static const char *holds(int wanted) {
    EXPECT(tag == wanted);
    for (int n = 0; n < 3; n++) {
        EXPECT(sem_post(&ask) == 0 && sem_wait(&answer) == 0);
        TRY(theirs);
    }
    return in_container(UID, GID);
}

static const char *check(void) { return holds(4); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
