/* Refused: mq_notify, for the kernel does not tell all of what the process is to be told. */
#include "conform.h"
#include <mqueue.h>

static mqd_t queue;

static const char *setup(void) {
    mq_unlink("/conform.notify");
    queue = mq_open("/conform.notify", O_RDWR | O_CREAT, 0600, NULL);
    EXPECT(queue != (mqd_t)-1 && mq_unlink("/conform.notify") == 0);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    signal(SIGUSR1, SIG_IGN);
    return mq_notify(queue, &event) == 0 ? NULL : "mq_notify";
}

/* Only one can be registered. */
static const char *check(void) {
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    EXPECT(mq_notify(queue, &event) == -1 && errno == EBUSY);
    return NULL;
}

static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
