/* Processes in one user namespace below their node's: the root of it, one that leads a session and has
 * given its capabilities away, one of a session whose leader has ended, and a zombie. */
/* Prepared with --tree */
#include "tree.h"
#include "user_namespace.h"
#include <grp.h>
#include <pthread.h>
#include <semaphore.h>

#define UIDS "0 100000 1000\n"
#define GIDS "0 200000 1000\n"
enum { WHO, ADD, SAY };
enum { WORKER = 5, GROUP = 6 };

static struct member worker, daemonized;
static int between[2], numbered[2];
static long *shared;
static pid_t root, zombie, session;
static sem_t ask, answer;
static const char *theirs;
static int tag = 4;

static const char *as(uid_t uid, gid_t gid, uint64_t caps) {
    uid_t uids[3];
    gid_t gids[3];
    EXPECT(getresuid(uids, uids + 1, uids + 2) == 0 && getresgid(gids, gids + 1, gids + 2) == 0);
    EXPECT(uids[0] == uid && uids[1] == uid && uids[2] == uid);
    EXPECT(gids[0] == gid && gids[1] == gid && gids[2] == gid);
    EXPECT(capabilities() == caps);
    TRY(has_fields("/proc/self/uid_map", UIDS));
    TRY(has_fields("/proc/self/gid_map", GIDS));
    return NULL;
}

static const char *common(int what, int n) {
    char text[8] = {0};
    if (what == ADD) *shared += n;
    if (what == SAY) {
        snprintf(text, sizeof text, "say %2d", n);
        EXPECT(write(between[1], text, sizeof text) == sizeof text);
    }
    return NULL;
}

static void *other(void *arg) {
    for (;;) {
        while (sem_wait(&ask) != 0) {
        }
        theirs = as(WORKER, GROUP, 0);
        sem_post(&answer);
    }
    return arg;
}

static void becomes_worker(void) {
    pthread_t thread;
    const gid_t group = GROUP;
    if (setsid() < 0 || setgroups(1, &group) != 0 || setresgid(GROUP, GROUP, GROUP) != 0) _exit(1);
    if (setresuid(WORKER, WORKER, WORKER) != 0 || prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 0) _exit(2);
    if (sem_init(&ask, 0, 0) != 0 || sem_init(&answer, 0, 0) != 0) _exit(3);
    if (pthread_create(&thread, NULL, other, NULL) != 0) _exit(4);
}

static const char *works(int what, int n) {
    if (what == WHO) {
        TRY(as(WORKER, GROUP, 0));
        EXPECT(sem_post(&ask) == 0 && sem_wait(&answer) == 0);
        TRY(theirs);
        EXPECT(getsid(0) == getpid() && getppid() == root && setuid(0) == -1 && errno == EPERM);
        EXPECT(kill(root, 0) == -1 && errno == EPERM);
    }
    return common(what, n);
}

/* Its own parent, which led the session, has ended: the root, a subreaper, took it. */
static void daemonizes(void) {
    setsid();
    if (fork() != 0) _exit(0);
    while (getppid() != root) usleep(1000);
    const pid_t ids[2] = {getpid(), getsid(0)};
    if (write(numbered[1], ids, sizeof ids) != sizeof ids) _exit(5);
}

static const char *serves(int what, int n) {
    if (what == WHO) {
        TRY(as(0, 0, all_capabilities()));
        EXPECT(getppid() == root && kill(root, 0) == 0);
        EXPECT(getsid(0) != getsid(root) && getsid(0) != getpid());
    }
    return common(what, n);
}

static const char *setup(void) {
    pid_t ids[2];
    TRY(enter_mapped(UIDS, GIDS));
    EXPECT(setgroups(0, NULL) == 0 && setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0);
    EXPECT(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0 && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(shared != MAP_FAILED && pipe(between) == 0 && pipe(numbered) == 0);
    root = getpid();
    TRY(begin(&worker, becomes_worker, works));
    TRY(begin(&daemonized, daemonizes, serves));
    EXPECT(read(numbered[0], ids, sizeof ids) == sizeof ids);
    EXPECT(waitpid(daemonized.pid, NULL, 0) == daemonized.pid);
    daemonized.pid = ids[0], session = ids[1];
    close(numbered[0]), close(numbered[1]);
    zombie = fork();
    EXPECT(zombie >= 0);
    if (zombie == 0) _exit(7);
    EXPECT(waitid(P_PID, (id_t)zombie, &(siginfo_t){0}, WEXITED | WNOWAIT) == 0);
    *shared = 1;
    return NULL;
}

static const char *holds(int wanted) {
    siginfo_t info = {0};
    EXPECT(tag == wanted);
    TRY(as(0, 0, all_capabilities()));
    TRY(tell(&worker, WHO, 0));
    TRY(tell(&daemonized, WHO, 0));
    EXPECT(getsid(daemonized.pid) == session && getsid(worker.pid) == worker.pid);
    EXPECT(waitid(P_PID, (id_t)zombie, &info, WEXITED | WNOWAIT) == 0);
    EXPECT(info.si_code == CLD_EXITED && info.si_status == 7);
    return NULL;
}

static const char *said(struct member *member, int n) {
    char text[8], wanted[8] = {0};
    snprintf(wanted, sizeof wanted, "say %2d", n);
    TRY(tell(member, SAY, n));
    EXPECT(read(between[0], text, sizeof text) == sizeof text && !memcmp(text, wanted, sizeof text));
    return NULL;
}

static const char *check(void) {
    EXPECT(*shared == 1);
    return holds(4);
}
static const char *change(int n) {
    tag = 10 + n;
    TRY(tell(&worker, ADD, n));
    TRY(tell(&daemonized, ADD, 10 * n));
    TRY(said(&worker, n));
    return said(&daemonized, n + 20);
}
static const char *verify(int n) {
    EXPECT(*shared == 1 + 11 * n);
    return holds(10 + n);
}
