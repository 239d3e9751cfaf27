/* Pidfds of other processes, one that lives and one that has ended: to a child both have ended. */
#include "conform.h"
#include <sys/prctl.h>
#include <sys/wait.h>

static int alive, ended, twin, own;

static const char *setup(void) {
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    alive = (int)syscall(SYS_pidfd_open, pid, O_NONBLOCK);
    twin = dup(alive);
    EXPECT(pid > 0 && alive >= 0 && twin >= 0);
    pid = fork();
    if (pid == 0) _exit(0);
    ended = (int)syscall(SYS_pidfd_open, pid, 0);
    EXPECT(pid > 0 && ended >= 0 && waitpid(pid, NULL, 0) == pid);
    own = (int)syscall(SYS_pidfd_open, getpid(), 0);
    return own >= 0 ? NULL : "pidfd_open";
}

static const char *gone(int fd) {
    EXPECT(readable(fd));
    EXPECT(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == -1 && errno == ESRCH);
    return NULL;
}

static const char *check(void) {
    TRY(gone(ended));
    EXPECT((flags_of(alive) & O_NONBLOCK) && !(flags_of(ended) & O_NONBLOCK));
    EXPECT(is_cloexec(alive) && !is_cloexec(twin));
    EXPECT(!readable(own));
    if (is_parent()) {
        EXPECT(!readable(alive) && !readable(twin));
        return NULL;
    }
    TRY(gone(alive));
    TRY(gone(twin));
    siginfo_t info;
    EXPECT(waitid(P_PIDFD, (id_t)alive, &info, WEXITED) == -1 && errno == ECHILD);
    return NULL;
}

/* A process of its own is still to be had. */
static const char *change(int n) {
    pid_t pid = fork();
    if (pid == 0) _exit(n);
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    siginfo_t info;
    EXPECT(pid > 0 && fd >= 0 && waitid(P_PIDFD, (id_t)fd, &info, WEXITED) == 0);
    EXPECT(info.si_status == n && close(fd) == 0);
    return NULL;
}
static const char *verify(int n) { return n > 0 ? check() : "no"; }
