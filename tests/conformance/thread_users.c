/* Threads with credentials of their own, which on Linux belong to threads, not to processes: user, groups,
 * capabilities. */
#include "conform.h"
#include <linux/capability.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/prctl.h>

#define THREADS 4
static sem_t ask[THREADS], answer;
static int wish;

struct found {
    int uid, effective, gid, groups, first_group, chown, bounded, securebits;
};
static struct found found[THREADS];

static uint32_t capabilities(uint32_t mask) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &head, data) != 0) return ~0u;
    uint32_t had = data[0].effective;
    if (mask != 0) {
        data[0].effective &= ~mask;
        data[0].permitted &= ~mask;
        if (syscall(SYS_capset, &head, data) != 0) return ~0u;
    }
    return had;
}

static struct found look(void) {
    uid_t uid, effective, saved;
    gid_t groups[8] = {0};
    syscall(SYS_getresuid, &uid, &effective, &saved);
    return (struct found){
        .uid = (int)uid,
        .effective = (int)effective,
        .gid = (int)syscall(SYS_getegid),
        .groups = (int)syscall(SYS_getgroups, 8, groups),
        .first_group = (int)groups[0],
        .chown = (capabilities(0) & 1u << CAP_CHOWN) != 0,
        .bounded = prctl(PR_CAPBSET_READ, CAP_SYS_TIME, 0, 0, 0) == 0,
        .securebits = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0),
    };
}

/* The C library would have all threads do the same. */
static const char *become(int n) {
    gid_t group = 1234;
    switch (n) {
    case 1:
        EXPECT(syscall(SYS_setgroups, 1, &group) == 0);
        EXPECT(syscall(SYS_setresgid, -1, 2345, -1) == 0);
        EXPECT(syscall(SYS_setresuid, -1, 3456, -1) == 0);
        return NULL;
    case 2: EXPECT(capabilities(1u << CAP_CHOWN) != ~0u); return NULL;
    case 3:
        EXPECT(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME, 0, 0, 0) == 0);
        /* SECBIT_NO_SETUID_FIXUP: it keeps all capabilities. */
        EXPECT(prctl(PR_SET_SECUREBITS, 1 << 2, 0, 0, 0) == 0);
        EXPECT(syscall(SYS_setresuid, 4567, 4567, 4567) == 0);
        return NULL;
    }
    return NULL;
}

static void *thread(void *arg) {
    int n = (int)(intptr_t)arg;
    const char *failed = become(n);
    if (failed != NULL) dprintf(1, "thread %d: %s\n", n, failed);
    for (;;) {
        sem_post(&answer);
        while (sem_wait(&ask[n]) != 0) {
        }
        if (wish != 0) {
            /* By way of its real one. */
            syscall(SYS_setresuid, -1, 0, -1);
            syscall(SYS_setresuid, -1, wish, -1);
        }
        found[n] = look();
    }
    return NULL;
}

static void told(int n) {
    sem_post(&ask[n]);
    while (sem_wait(&answer) != 0) {
    }
}

static struct found mine;

static const char *setup(void) {
    EXPECT(sem_init(&answer, 0, 0) == 0);
    mine = look();
    for (intptr_t n = 1; n < THREADS; n++) {
        pthread_t id;
        EXPECT(sem_init(&ask[n], 0, 0) == 0);
        EXPECT(pthread_create(&id, NULL, thread, (void *)n) == 0);
        while (sem_wait(&answer) != 0) {
        }
    }
    /* The kernel takes it away where credentials change. */
    EXPECT(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);
    return NULL;
}

static const char *holds(int effective) {
    struct found now = look();
    EXPECT(memcmp(&now, &mine, sizeof now) == 0);
    EXPECT(now.chown && !now.bounded && now.uid == 0);
    for (int n = 1; n < THREADS; n++) told(n);
    EXPECT(found[1].uid == 0 && found[1].effective == effective && found[1].gid == 2345);
    EXPECT(found[1].groups == 1 && found[1].first_group == 1234 && !found[1].chown);
    EXPECT(found[2].uid == 0 && found[2].effective == 0 && !found[2].chown);
    EXPECT(found[2].groups == mine.groups && !found[2].bounded && found[2].securebits == 0);
    EXPECT(found[3].uid == 4567 && found[3].effective == 4567 && found[3].gid == mine.gid);
    EXPECT(found[3].chown && found[3].bounded && found[3].securebits == 1 << 2);
    return NULL;
}

static const char *check(void) { return holds(3456); }
static const char *change(int n) {
    wish = 1000 + n;
    told(1);
    wish = 0;
    return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0 ? NULL : "PR_SET_DUMPABLE";
}
static const char *verify(int n) { return holds(1000 + n); }
