/* System V objects of several processes: a segment that all attach, at addresses of their own, one
 * that was removed, one that only members have; semaphores and queues that root and members use, or
 * each alone, or to wait for one another. */
/* Prepared with --tree */
#include "tree.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#define PAGE 4096ul
#define SIZE (64 * PAGE)
#define KEY 0x4d56
enum { FILL, HOLDS, GONE, OWN, SEND, POST, COUNT };
struct text {
    long type;
    char body[100];
};
static int segment, removed, set, queue;
/* In the members. */
static int own_set, own_queue, own_segment;
static uint8_t *wide, *gone, *mine;
static struct member one, two, waiter;

static const char *attached(int id, unsigned long count) {
    struct shmid_ds state;
    EXPECT(shmctl(id, IPC_STAT, &state) == 0 && state.shm_nattch == count);
    return NULL;
}

static const char *works(int what, int n) {
    struct text text = {n, "queued"};
    struct sembuf post = {0, 1, 0};
    if (what == FILL) fill(wide + SIZE / 2, SIZE / 2, (unsigned)n);
    if (what == HOLDS) {
        EXPECT(filled(wide, SIZE / 2, 1) && filled(wide + SIZE / 2, SIZE / 2, (unsigned)n));
        EXPECT(shmget(KEY, SIZE, 0) == segment && semget(KEY, 2, 0) == set);
        TRY(attached(segment, 4));
    }
    if (what == GONE) {
        EXPECT(filled(gone, PAGE, (unsigned)n));
        TRY(attached(removed, 2));
    }
    if (what == OWN) {
        EXPECT(semctl(own_set, 0, GETVAL) == 5 + n);
        EXPECT(msgrcv(own_queue, &text, sizeof text.body, 0, IPC_NOWAIT) == 5);
        EXPECT(text.type == 1 + n && memcmp(text.body, "alone", 5) == 0);
        EXPECT(msgsnd(own_queue, &text, 5, IPC_NOWAIT) == 0);
        EXPECT(filled(mine, PAGE, 5 + (unsigned)n));
        TRY(attached(own_segment, 1));
    }
    if (what == SEND) EXPECT(msgsnd(queue, &text, 6, IPC_NOWAIT) == 0);
    if (what == POST) EXPECT(semop(set, &post, 1) == 0);
    if (what == COUNT) EXPECT(semctl(set, 1, GETVAL) == n);
    return NULL;
}

/* An attachment of its own, and objects that nobody else has. */
static void elsewhere(int n) {
    struct text text = {1 + n, "alone"};
    if (shmdt(wide) != 0 || (wide = shmat(segment, NULL, 0)) == (void *)-1) _exit(5);
    own_set = semget(IPC_PRIVATE, 1, 0600);
    own_queue = msgget(IPC_PRIVATE, 0600);
    own_segment = shmget(IPC_PRIVATE, PAGE, 0600);
    mine = shmat(own_segment, NULL, 0);
    if (own_set < 0 || own_queue < 0 || mine == (void *)-1) _exit(6);
    fill(mine, PAGE, 5 + (unsigned)n);
    struct sembuf up = {0, (short)(5 + n), 0};
    if (semop(own_set, &up, 1) != 0 || msgsnd(own_queue, &text, 5, 0) != 0) _exit(7);
}
static void begins_one(void) { elsewhere(1); }
static void begins_two(void) {
    if (shmdt(gone) != 0) _exit(4);
    elsewhere(2);
}
static void waits(void) {
    shmdt(gone);
    struct sembuf down = {0, -1, 0}, up = {1, 1, 0};
    if (semop(set, &down, 1) != 0 || semop(set, &up, 1) != 0) _exit(5);
}

static const char *setup(void) {
    int old = shmget(KEY, 0, 0);
    if (old >= 0) shmctl(old, IPC_RMID, NULL);
    if ((old = semget(KEY, 0, 0)) >= 0) semctl(old, 0, IPC_RMID);
    segment = shmget(KEY, SIZE, IPC_CREAT | IPC_EXCL | 0640);
    removed = shmget(IPC_PRIVATE, 2 * PAGE, 0600);
    set = semget(KEY, 2, IPC_CREAT | IPC_EXCL | 0600);
    queue = msgget(IPC_PRIVATE, 0600);
    EXPECT(segment >= 0 && removed >= 0 && set >= 0 && queue >= 0);
    wide = shmat(segment, NULL, 0);
    gone = shmat(removed, NULL, 0);
    EXPECT(wide != (void *)-1 && gone != (void *)-1 && shmctl(removed, IPC_RMID, NULL) == 0);
    fill(wide, SIZE / 2, 1), fill(wide + SIZE / 2, SIZE / 2, 2), fill(gone, PAGE, 3);
    /* It says who made it; what was never used is nobody's. */
    struct text text = {9, "first"};
    EXPECT(semctl(set, 0, SETVAL, 0) == 0 && semctl(set, 1, SETVAL, 0) == 0);
    EXPECT(msgsnd(queue, &text, 5, 0) == 0);
    TRY(begin(&one, begins_one, works));
    TRY(begin(&two, begins_two, works));
    TRY(begin(&waiter, waits, works));
    EXPECT(sleeps(one.pid) && sleeps(two.pid) && sleeps(waiter.pid));
    return tell(&one, SEND, 4);
}

static const char *holds(unsigned seed, int through) {
    EXPECT(filled(wide, SIZE / 2, 1) && filled(wide + SIZE / 2, SIZE / 2, seed));
    EXPECT(filled(gone, PAGE, 3));
    TRY(tell(&one, HOLDS, (int)seed));
    TRY(tell(&two, HOLDS, (int)seed));
    TRY(tell(&one, GONE, 3));
    TRY(tell(&one, OWN, 1));
    TRY(tell(&two, OWN, 2));
    return tell(&two, COUNT, through);
}

static const char *check(void) {
    EXPECT(sleeps(waiter.pid) && semctl(set, 0, GETNCNT) == 1);
    return holds(2, 0);
}

static const char *change(int n) {
    struct text text = {0};
    TRY(tell(&two, FILL, 10 + n));
    EXPECT(msgrcv(queue, &text, sizeof text.body, 4, IPC_NOWAIT) == 6);
    EXPECT(memcmp(text.body, "queued", 6) == 0);
    TRY(tell(&two, SEND, 100 + n));
    TRY(tell(&one, POST, 0));
    EXPECT(sleeps(waiter.pid));
    return tell(&waiter, HOLDS, 10 + n);
}

static const char *verify(int n) {
    struct msqid_ds state;
    struct text text = {0};
    TRY(holds(10 + (unsigned)n, 1));
    EXPECT(msgctl(queue, IPC_STAT, &state) == 0 && state.msg_qnum == 2);
    EXPECT(msgrcv(queue, &text, sizeof text.body, 0, IPC_NOWAIT) == 5 && text.type == 9);
    EXPECT(msgsnd(queue, &text, 5, IPC_NOWAIT) == 0);
    EXPECT(msgrcv(queue, &text, sizeof text.body, 0, IPC_NOWAIT) == 6 && text.type == 100 + n);
    return msgsnd(queue, &text, 6, IPC_NOWAIT) == 0 ? NULL : "msgsnd";
}
