/* Refused: is in session, whose leader has ended: a daemon that its root has adopted. */
/* Prepared with --tree */
#include "../tree.h"

static pid_t *orphan;

static const char *setup(void) {
    orphan = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(orphan != MAP_FAILED && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        pid_t left = fork();
        if (left == 0) {
            close(CONTROL_FD);
            for (;;) pause();
        }
        *orphan = left;
        _exit(0);
    }
    EXPECT(waitpid(pid, NULL, 0) == pid);
    return NULL;
}
static const char *check(void) { return kill(*orphan, 0) == 0 ? NULL : "gone"; }
static const char *change(int n) { return n ? NULL : "no"; }
static const char *verify(int n) { return n ? NULL : "no"; }
