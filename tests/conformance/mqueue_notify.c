/* POSIX message queues of which the process is to be told: that is for the process alone, as after a
 * fork. What waits in one is a child's, unless looking at it would tell somebody. */
#include "conform.h"
#include <mqueue.h>

static mqd_t empty, waiting;
static volatile sig_atomic_t told;

static void on_message(int signal) { told += signal == SIGUSR1; }

static const char *ask(mqd_t queue) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    return mq_notify(queue, &event) == 0 ? NULL : "mq_notify";
}

static const char *setup(void) {
    struct mq_attr small = {.mq_maxmsg = 2, .mq_msgsize = 16};
    mq_unlink("/conform.notify");
    mq_unlink("/conform.waiting");
    empty = mq_open("/conform.notify", O_RDWR | O_CREAT | O_NONBLOCK, 0600, &small);
    waiting = mq_open("/conform.waiting", O_RDWR | O_CREAT | O_NONBLOCK, 0600, &small);
    EXPECT(empty != (mqd_t)-1 && waiting != (mqd_t)-1);
    EXPECT(mq_unlink("/conform.notify") == 0 && mq_unlink("/conform.waiting") == 0);
    EXPECT(signal(SIGUSR1, on_message) != SIG_ERR);
    EXPECT(mq_send(waiting, "waits", 5, 3) == 0);
    TRY(ask(waiting));
    return ask(empty);
}

static const char *check(void) {
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    struct mq_attr attr;
    EXPECT(mq_getattr(waiting, &attr) == 0 && attr.mq_curmsgs == (is_parent() ? 1 : 0));
    if (is_parent()) {
        EXPECT(told == 0 && mq_notify(empty, &none) == -1 && errno == EBUSY);
        return NULL;
    }
    /* Nobody is to be told: to ask is allowed, and is taken back. */
    EXPECT(mq_notify(empty, &none) == 0 && mq_notify(empty, NULL) == 0);
    return mq_notify(waiting, &none) == 0 && mq_notify(waiting, NULL) == 0 ? NULL : "waiting";
}

static const char *change(int n) {
    char byte[16];
    EXPECT(n > 0 && told == 0);
    TRY(ask(empty));
    EXPECT(mq_send(empty, "x", 1, 0) == 0);
    for (int i = 0; i < 5000 && told == 0; i++) usleep(1000);
    EXPECT(told == 1 && mq_receive(empty, byte, sizeof byte, NULL) == 1);
    told = 0;
    return NULL;
}
static const char *verify(int n) { return n > 0 ? check() : "no"; }
