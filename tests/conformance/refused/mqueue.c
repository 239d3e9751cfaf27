/* Refused: message queue, which belongs to an IPC namespace. */
#include "conform.h"
#include <mqueue.h>

static mqd_t queue;

static const char *setup(void) {
    mq_unlink("/conform");
    queue = mq_open("/conform", O_RDWR | O_CREAT, 0600, NULL);
    EXPECT(queue != (mqd_t)-1 && mq_unlink("/conform") == 0);
    return mq_send(queue, "x", 1, 3) == 0 ? NULL : "mq_send";
}

static const char *check(void) {
    struct mq_attr attr;
    EXPECT(mq_getattr(queue, &attr) == 0 && attr.mq_curmsgs == 1);
    return NULL;
}

static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
