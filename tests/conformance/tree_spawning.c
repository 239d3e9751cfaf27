/* Processes that start others without a pause, as a server with a process for each connection does, and a
 * shell with its commands: by fork(2), and by posix_spawn(3), whose caller stands still in vfork(2) until
 * the new one executes. Those that are there when the seed is made end in a child, too. */
/* Prepared with --tree */
#include "tree.h"
#include <pthread.h>
#include <spawn.h>

enum { COUNTS, MARK, SHOWS };
static volatile struct { int started[4], ended[4], failed, mark; } *shared;
static struct member members[4];

/* In the background, while its member can be asked. */

static int own;
static void *starts(void *unused) {
    char *argv[] = {"true", NULL}, *none[] = {NULL};
    for (;;) {
        int status = 0;
        pid_t pid = 0;
        if (own == 3) {
            if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, none) != 0) shared->failed = 1;
        } else if ((pid = fork()) == 0) {
            usleep(1500);
            _exit(0);
        }
        shared->started[own]++;
        if (waitpid(pid, &status, 0) != pid || status != 0) shared->failed = 2;
        shared->ended[own]++;
        usleep(500);
    }
    return unused;
}
static void begins(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, starts, NULL) != 0) _exit(5);
}

static const char *works(int what, int n) {
    if (what == MARK) shared->mark = n;
    if (what == SHOWS) EXPECT(shared->mark == n);
    if (what != COUNTS) return NULL;
    int before = shared->ended[own];
    for (int i = 0; i < 500 && shared->ended[own] < before + 3; i++) usleep(10000);
    EXPECT(shared->ended[own] >= before + 3 && shared->failed == 0);
    return NULL;
}

static const char *setup(void) {
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(shared != MAP_FAILED);
    for (own = 0; own < 4; own++) TRY(begin(&members[own], begins, works));
    return NULL;
}

static const char *all(int what, int n) {
    for (int i = 0; i < 4; i++) TRY(tell(&members[i], what, n));
    return NULL;
}
static const char *check(void) {
    TRY(all(COUNTS, 0));
    return all(SHOWS, 0);
}
static const char *change(int n) { return tell(&members[n], MARK, n); }
static const char *verify(int n) {
    TRY(all(COUNTS, 0));
    return all(SHOWS, n);
}
