/* A main thread in seccomp's strict mode: it only reads and writes from then on, and another thread does
 * all else. */
#include "confined.h"
#include <pthread.h>

static void *answers(void *arg) {
    if (tells('=', 7) != NULL || serve() != 0) _exit(1);
    return arg;
}

static const char *setup(void) {
    pthread_t id;
    EXPECT(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
    EXPECT(pthread_create(&id, NULL, answers, NULL) == 0);
    obey_in_strict_mode();
    return "there is no strict mode";
}

static const char *holds(uint8_t want) {
    EXPECT(mode_of(getpid()) == SECCOMP_MODE_STRICT);
    EXPECT(prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == SECCOMP_MODE_DISABLED);
    return tells('=', want);
}

static const char *check(void) { return holds(7); }
static const char *change(int n) {
    for (int i = 1; i <= n; i++) TRY(tells('+', (uint8_t)(7 + i)));
    return NULL;
}
static const char *verify(int n) { return holds((uint8_t)(7 + n)); }
