/* POSIX message queues: one with a name and one without, by several descriptors, with what waits in
 * them: order, priorities, bounds, permissions. */
#include "conform.h"
#include <mqueue.h>

static mqd_t reader, writer, gone, twin;

static const char *setup(void) {
    struct mq_attr small = {.mq_maxmsg = 4, .mq_msgsize = 100};
    struct mq_attr roomy = {.mq_maxmsg = 10, .mq_msgsize = 8192};
    mq_unlink("/conform");
    gone = mq_open("/conform", O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0600, &small);
    EXPECT(gone != (mqd_t)-1 && mq_unlink("/conform") == 0);
    umask(0);
    writer = mq_open("/conform", O_WRONLY | O_CREAT | O_EXCL, 0622, &roomy);
    umask(022);
    reader = mq_open("/conform", O_RDONLY | O_NONBLOCK);
    twin = dup(reader);
    EXPECT(writer != (mqd_t)-1 && reader != (mqd_t)-1 && twin != (mqd_t)-1);
    EXPECT(fcntl(twin, F_SETFD, 0) == 0);
    EXPECT(mq_send(writer, "low", 3, 1) == 0 && mq_send(writer, "high", 4, 9) == 0);
    EXPECT(mq_send(writer, "", 0, 1) == 0);
    /* Full. */
    for (int i = 0; i < 4; i++) EXPECT(mq_send(gone, (char[]){(char)('a' + i)}, 1, 2) == 0);
    return NULL;
}

static const char *next(mqd_t from, const char *text, unsigned priority) {
    char got[8192];
    unsigned told = 77;
    ssize_t len = mq_receive(from, got, sizeof got, &told);
    EXPECT(len == (ssize_t)strlen(text) && memcmp(got, text, (size_t)len) == 0);
    EXPECT(told == priority);
    return NULL;
}

static const char *holds(const char *first) {
    struct mq_attr attr;
    struct stat stat;
    EXPECT(mq_getattr(writer, &attr) == 0 && attr.mq_flags == 0 && attr.mq_curmsgs == 3);
    EXPECT(attr.mq_maxmsg == 10 && attr.mq_msgsize == 8192);
    EXPECT(mq_getattr(twin, &attr) == 0 && attr.mq_flags == O_NONBLOCK);
    EXPECT(fstat(writer, &stat) == 0 && (stat.st_mode & 0777) == 0622);
    EXPECT(is_cloexec(reader) && !is_cloexec(twin));
    EXPECT(mq_receive(writer, (char[8192]){0}, 8192, NULL) == -1 && errno == EBADF);
    TRY(next(reader, first, 9));
    TRY(next(twin, "low", 1));
    TRY(next(reader, "", 1));
    EXPECT(mq_receive(twin, (char[8192]){0}, 8192, NULL) == -1 && errno == EAGAIN);
    EXPECT(mq_send(writer, first, strlen(first), 9) == 0);
    EXPECT(mq_send(writer, "low", 3, 1) == 0 && mq_send(writer, "", 0, 1) == 0);
    EXPECT(mq_getattr(gone, &attr) == 0 && attr.mq_curmsgs == 4 && attr.mq_maxmsg == 4);
    EXPECT(attr.mq_msgsize == 100 && attr.mq_flags == O_NONBLOCK);
    EXPECT(mq_send(gone, "z", 1, 2) == -1 && errno == EAGAIN);
    for (int i = 0; i < 4; i++) {
        TRY(next(gone, (char[]){(char)('a' + i), 0}, 2));
        EXPECT(mq_send(gone, (char[]){(char)('a' + i)}, 1, 2) == 0);
    }
    /* The name still leads to the one that has it. */
    mqd_t again = mq_open("/conform", O_RDONLY);
    EXPECT(again != (mqd_t)-1 && mq_getattr(again, &attr) == 0 && attr.mq_curmsgs == 3);
    EXPECT(mq_close(again) == 0);
    return NULL;
}

static char text[16] = "high";

static const char *check(void) { return holds("high"); }
static const char *change(int n) {
    TRY(next(reader, text, 9));
    snprintf(text, sizeof text, "high %d", n);
    EXPECT(mq_send(writer, text, strlen(text), 9) == 0);
    return NULL;
}
static const char *verify(int n) {
    char wanted[16];
    snprintf(wanted, sizeof wanted, "high %d", n);
    return holds(wanted);
}
