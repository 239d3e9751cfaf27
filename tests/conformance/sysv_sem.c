/* System V semaphores and message queues that the program uses: ids, keys, owner, values; what
 * waits in a queue, in its order and with its types. */
#include "conform.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>

#define KEY 0x4d55
static int set, queue, narrow;
struct text {
    long type;
    char body[9000];
};

static const char *post(int to, long type, char letter, size_t len) {
    static struct text out;
    out.type = type;
    memset(out.body, letter, len);
    EXPECT(msgsnd(to, &out, len, IPC_NOWAIT) == 0);
    return NULL;
}

static const char *take(int from, long wanted, long type, char letter, size_t len) {
    static struct text in;
    EXPECT(msgrcv(from, &in, sizeof in.body, wanted, IPC_NOWAIT) == (ssize_t)len);
    EXPECT(in.type == type && (len == 0 || (in.body[0] == letter && in.body[len - 1] == letter)));
    return NULL;
}

static const char *setup(void) {
    int old = semget(KEY, 0, 0);
    if (old >= 0) semctl(old, 0, IPC_RMID);
    old = msgget(KEY, 0);
    if (old >= 0) msgctl(old, IPC_RMID, NULL);
    old = msgget(KEY + 1, 0);
    if (old >= 0) msgctl(old, IPC_RMID, NULL);
    set = semget(KEY, 3, IPC_CREAT | IPC_EXCL | 0640);
    queue = msgget(KEY, IPC_CREAT | IPC_EXCL | 0640);
    narrow = msgget(KEY + 1, IPC_CREAT | IPC_EXCL | 0600);
    EXPECT(set >= 0 && queue >= 0 && narrow >= 0);
    unsigned short values[3] = {1, 0, 32767};
    EXPECT(semctl(set, 0, SETALL, values) == 0);
    struct msqid_ds state;
    EXPECT(msgctl(narrow, IPC_STAT, &state) == 0);
    state.msg_qbytes = 12000;
    state.msg_perm.uid = 14;
    EXPECT(msgctl(narrow, IPC_SET, &state) == 0);
    for (int i = 0; i < 4; i++) TRY(post(narrow, i + 1, (char)('a' + i), 3000));
    TRY(post(queue, 5, 'x', 10));
    TRY(post(queue, 3, 'y', 0));
    return post(queue, 5, 'z', 2000);
}

/* Takes all there is, and puts it back. */
static const char *holds(unsigned short value, char letter) {
    unsigned short values[3] = {0};
    EXPECT(semget(KEY, 3, 0) == set && semctl(set, 0, GETALL, values) == 0);
    EXPECT(values[0] == value && values[1] == 0 && values[2] == 32767);
    struct sembuf take_none = {1, -1, IPC_NOWAIT};
    EXPECT(semop(set, &take_none, 1) == -1 && errno == EAGAIN);
    struct semid_ds sems;
    EXPECT(semctl(set, 0, IPC_STAT, &sems) == 0 && (sems.sem_perm.mode & 0777) == 0640);
    EXPECT(msgget(KEY, 0) == queue && msgget(KEY + 1, 0) == narrow);
    TRY(take(queue, 3, 3, 'y', 0));
    TRY(take(queue, 0, 5, letter, 10));
    TRY(take(queue, 0, 5, 'z', 2000));
    TRY(post(queue, 5, letter, 10));
    TRY(post(queue, 3, 'y', 0));
    TRY(post(queue, 5, 'z', 2000));
    struct msqid_ds state;
    EXPECT(msgctl(narrow, IPC_STAT, &state) == 0 && state.msg_qnum == 4);
    EXPECT(state.msg_perm.uid == 14 && state.msg_cbytes == 12000 && state.msg_qbytes == 12000);
    for (int i = 0; i < 4; i++) TRY(take(narrow, 0, i + 1, (char)('a' + i), 3000));
    for (int i = 0; i < 4; i++) TRY(post(narrow, i + 1, (char)('a' + i), 3000));
    return NULL;
}

static const char *check(void) { return holds(1, 'x'); }
static const char *change(int n) {
    static char last = 'x';
    EXPECT(semctl(set, 0, SETVAL, 100 + n) == 0);
    TRY(take(queue, 0, 5, last, 10));
    last = (char)('A' + n);
    TRY(take(queue, 3, 3, 'y', 0));
    TRY(take(queue, 0, 5, 'z', 2000));
    TRY(post(queue, 5, (char)('A' + n), 10));
    TRY(post(queue, 3, 'y', 0));
    return post(queue, 5, 'z', 2000);
}
static const char *verify(int n) { return holds((unsigned short)(100 + n), (char)('A' + n)); }
