/* A POSIX message queue of a process in a user namespace whose root is somebody else outside: in a child's IPC
 * namespace, which belongs to its user namespace, nobody else can make one. Owner and what waits stay. */
#include "user_namespace.h"
#include <grp.h>
#include <mqueue.h>

static const char *const name = "/conform.users";
static mqd_t own, given;

static const char *setup(void) {
    struct mq_attr small = {.mq_maxmsg = 4, .mq_msgsize = 100};
    TRY(enter_mapped("0 100000 1000\n", "0 200000 1000\n"));
    EXPECT(setgroups(0, NULL) == 0 && setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0);
    EXPECT(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);
    mq_unlink(name);
    given = mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0600, &small);
    EXPECT(given != (mqd_t)-1 && fchown(given, 7, 8) == 0 && mq_unlink(name) == 0);
    own = mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0640, &small);
    EXPECT(own != (mqd_t)-1 && mq_send(own, "waits", 5, 3) == 0);
    return NULL;
}

static const char *holds(const char *text) {
    char got[100];
    unsigned priority;
    struct stat stat;
    EXPECT(fstat(own, &stat) == 0 && stat.st_uid == 0 && stat.st_gid == 0);
    EXPECT((stat.st_mode & 0777) == 0640);
    EXPECT(fstat(given, &stat) == 0 && stat.st_uid == 7 && stat.st_gid == 8);
    EXPECT(mq_receive(own, got, sizeof got, &priority) == (ssize_t)strlen(text) && priority == 3);
    EXPECT(!memcmp(got, text, strlen(text)) && mq_send(own, text, strlen(text), 3) == 0);
    mqd_t again = mq_open(name, O_RDWR);
    EXPECT(again != (mqd_t)-1 && mq_close(again) == 0);
    return NULL;
}

static const char *check(void) { return holds("waits"); }
static const char *change(int n) {
    char text[16];
    EXPECT(mq_receive(own, (char[100]){0}, 100, NULL) > 0);
    snprintf(text, sizeof text, "of child %d", n);
    return mq_send(own, text, strlen(text), 3) == 0 ? NULL : "mq_send";
}
static const char *verify(int n) {
    char text[16];
    snprintf(text, sizeof text, "of child %d", n);
    return holds(text);
}
